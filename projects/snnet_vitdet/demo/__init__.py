"""A page to try a trained model on: ``python -m snnet_vitdet.demo``.

Only ``page`` and ``server`` need gradio, which is an optional requirement.
"""
