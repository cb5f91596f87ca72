"""Algorithm 1 and its mathematics: no Flower, no Ray, no data set, no file.

Read ``algorithm`` first, then ``distillation.distill`` and ``distillation.matching``.
"""
