"""The planned path: decoders of other programs, run as those programs run them (see `clseg.network.plan`).

prepare    scan → what the network sees, and where that lies in the scan
body       where CL-Net looks: the body, in slices that can hold a decoder's organs
resample   splines as nnU-Net and CL-Net use them
windows    where windows lie and how much each voxel of them counts
predict    windows → mean scores, finished slices first to last
export     mean scores → label map and winner's probability on the scan's grid
run        all of it for the decoders of a scan, composed into layers
"""
