"""Reward sources and the objectives made of them. Scoring a batch of N answers always gives a matrix (N, K) on 0-100.

objectives.py   heads -> objectives, and their calibration
model.py        sources side by side: RewardModel
rules.py        heads that a formula computes from the text
features.py     hidden states of a frozen language model, pooled per answer
ridge.py        linear heads on features in closed form, missing labels masked
regression.py   the two together: heads with a schema, saved, loaded and checked
trees.py        answers laid out as branches of the prompt that they share
reading.py      prompts and answers as a network's inputs
pretrained.py   transformers' classification models, started and loaded
network.py      a language model with a linear head per output
trained.py      a trained network as a source: its schema, probes and scale
comparer.py     a network that compares two answers, and as a source: chances against a reference
invariance.py   scores must not move with the batch or its padding
debias.py       a head without its preference for long answers
opening.py      a reward model by its name
score_file.py   the answers of a file, scored line by line

They are trained in `rhumbline.fitting` and measured in `rhumbline.cards`.
"""
