"""Importers: weights that others trained → checkpoints of clseg.

folder             a model's folder or a zip of one, and its JSON files
pickles            the one place that opens a foreign pickle, and only for plain content
nnunet             nnU-Net v2: trainings → parts, with the plan that gives nnU-Net's own results
nnunet_shape       its network, from either style of plans
nnunet_tensors     its tensors under our names
totalsegmentator   many trainings of nnU-Net as one model
clnet              the release of CL-Net's authors: networks and their plans
clnet_release      where everything lies in it, what its configuration means
clnet_tensors      its tensors under our names, masks folded in
install            parts → files, manifest entries and cards in the user's own folder
"""
