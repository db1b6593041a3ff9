"""Importers: weights that others trained → checkpoints of clseg.

folder             a model's folder or a zip of one, and its JSON files
pickles            the one place that opens a foreign pickle, and only for plain content
nnunet             nnU-Net v2: trainings → parts, with the plan that gives nnU-Net's own results
nnunet_shape       its network, from either style of plans
nnunet_tensors     its tensors under our names
totalsegmentator   many trainings of nnU-Net as one model
install            parts → files, manifest entries and cards in the user's own folder
"""
