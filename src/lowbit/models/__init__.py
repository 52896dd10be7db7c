"""A decoder-only language model in parts: what it is, what its tensors hold, what it computes.

==============  ==========================================================================================
module          content
==============  ==========================================================================================
``machine``     where and in what torch computes: devices, threads, types
``policy``      which models may be compressed
``inventory``   blocks, linear layers and names, on the meta device; what cannot be compressed is refused
``surgery``     changing a model in place: values, patches, forwards
``weights``     the values of a model, one block at a time
``decoder``     forward passes, one block in memory at a time
``taps``        the inputs of the linear layers of a block
``likelihood``  likelihood of a text under models, and their distances from one of them, in one pass
``adapters``    an adapter directory, given to the blocks that it belongs to
==============  ==========================================================================================

Importing this package imports none of them.
"""
