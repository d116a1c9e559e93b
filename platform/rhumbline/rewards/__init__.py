"""Reward sources and the objectives made of them. Scoring a batch of N answers always gives a matrix (N, K) on 0-100.

features.py     hidden states of a frozen language model, pooled per answer
ridge.py        linear heads on features in closed form, missing labels masked
regression.py   the two together: heads with a schema, saved, loaded and checked
rules.py        heads that a formula computes from the text
objectives.py   heads -> objectives, and their calibration
model.py        sources side by side: RewardModel
recipe.py       the recipe of jobs/reward.py

correlation.py  how well scores follow ratings
accuracy.py     how well a scorer or a comparer judges pairs
length_only.py  what length alone predicts, the baseline of both
agreement.py    how far two scorers say the same
resampling.py   intervals over prompts
sections.py     all of it as the sections of a card
card.py         the card as files
figures.py      its figures
debias.py       a head without its preference for long answers
opening.py      a reward model by its name
examination.py  a card of any model on any file
score_file.py   the answers of a file, scored line by line
commands.py     `rhumbline rewards ...`
"""
