"""Where workflows that train will live; there is none yet.

* *attach*: the modules of :mod:`lowbit.nn` put in the places of a model's layers, and taken out again;
* *loop glue*: data, loss, optimizer and schedule handed to a training loop that somebody else maintains;
* *checkpoints*: a training run stopped and continued, by the same plan, journal and lock as any run.

It stands beside :mod:`lowbit.compression`: it uses models, data and formats, recipes use it.
"""
