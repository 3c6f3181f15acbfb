"""Tamiyo in the frameworks that people train with, and in the loggers that they watch training with.

Each module needs the extra of the same name, such as `pip install 'esper-tamiyo[lightning]'`, and nothing here imports
a framework by itself:

- `tamiyo.integrations.lightning`: a callback for Lightning's Trainer;
- `tamiyo.integrations.transformers`: a callback for the Trainer of Hugging Face;
- `tamiyo.integrations.accelerate`: `attach` for a loop that uses accelerate;
- `tamiyo.integrations.tensorboard`, `.wandb`, `.mlflow`: write frames and adaptations of any attached run.
"""
