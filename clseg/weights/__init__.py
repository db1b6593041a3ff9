"""Weight files on this machine: fetched, verified, kept.

download   one address → one verified file
cache      assets of a manifest → verified paths
"""
