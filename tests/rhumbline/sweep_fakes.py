"""What searches in tests vary: a PPO recipe of two objectives that are formulas, for one direction."""

BASE = """
job: ppo
name: base
rewards:
  sources:
    - {kind: rules, heads: {length: {rule: verbosity}, words: {rule: verbosity}}}
  objectives:
    preference: {heads: {words: 1.0}}
    absolute: {heads: {length: 1.0}}
directions: {fixed: {preference: 0.5, absolute: 0.5}}
"""
