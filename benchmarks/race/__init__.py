"""Race: what `benchmarks/speed.py` is made of.

timing       seconds and peak memory of fresh processes, in pairs
gpu          how much of a GPU's memory is taken
scans        the CTs, made from a real one
networks     models with random weights, as nnU-Net stores them and as clseg does
peer         nnU-Net's own predictor in an environment of its own
nnunet_side  the program that runs in that environment
agreement    do both sides say the same?
rows         the comparisons, one function each
table        what is shown at the end
"""
