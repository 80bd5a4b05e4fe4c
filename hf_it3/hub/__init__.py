"""The Hub: pushing models, deltas of adapted models, and model cards."""
