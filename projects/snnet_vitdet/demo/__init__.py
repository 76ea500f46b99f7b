"""A page to try a trained model on: ``python -m snnet_vitdet.demo``.

Nothing here but ``page``, ``server`` and ``style`` needs gradio, which is an optional requirement.
"""
