"""Reward models from people's judgements: what jobs/reward.py reads, learns and publishes.

recipe.py           the recipe of jobs/reward.py: the kinds, and what each reads
labels.py           rated answers of all data sets as a matrix of labels
absolute_labels.py  ratings -> one label; over- and under-sampling, loss weights, paraphrases
paraphrases.py      paraphrases out of a file, for the low end of an absolute model's labels
similarity.py       how alike two texts are, by any sentence encoder
comparisons.py      comparisons of all data sets: splits without leaks, folds by conversation
frozen.py           ridge heads on a frozen backbone, in closed form
task.py             what a network is trained on, as plain data: inputs, units, splits, targets
checks.py           does a task hold what its kind learns?
kinds.py            what each kind learns: its loss, and its figures on held-out units
training.py         the train loop of reward networks
results.py          from a trained network's outputs to its schema and its card
"""
