"""From examples, pairs or rewarded answers to a policy.

policy, lora, checkpoints     weights and states on disk
packing, logprobs             samples as one row of tokens, and what a policy says of them
engine, optim                 one optimiser step, by torch or DeepSpeed
loop                          what every training shares: its start, its steps in order, its end
train                         examples: supervised, or distilled from a teacher; `stages` plans several in a row
preferences, units            pairs and judged answers
online, trajectories, credit, reference, value      PPO and GRPO
soups                         policies interpolated in the space of weights
"""
