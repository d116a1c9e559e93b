"""Losses: pure functions of tensors that return (loss, metrics). To add one: a file, and a line here."""

from rhumbline.losses.distill import distill
from rhumbline.losses.kl import k1, k2, k3
from rhumbline.losses.sft import sft

LOSSES = {"sft": sft, "distill": distill}  # (logits_RV, targets_R or teacher_RV, weights_R, denominator)
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
