"""Reward sources and the objectives made of them. Scoring a batch of N answers always gives a matrix (N, K) on 0-100.

features.py     hidden states of a frozen language model, pooled per answer
ridge.py        linear heads on features in closed form, missing labels masked
regression.py   the two together: heads with a schema, saved, loaded and checked
rules.py        heads that a formula computes from the text
objectives.py   heads -> objectives, and their calibration
model.py        sources side by side: RewardModel
card.py         what a fitted model can do, on held-out answers
recipe.py       the recipe of jobs/reward.py
"""
