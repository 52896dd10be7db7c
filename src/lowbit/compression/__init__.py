"""Layers in, fewer bits out: how a model is compressed block by block and what is written about it.

==============  ====================================================================================
module          content
==============  ====================================================================================
``setting``     what is decided for one module
``method``      how layers are compressed: every choice made
``contents``    names, types and shapes of the tensors of a result, before any value is known
``sizes``       its bytes, from these
``arrays``      tensors to the arrays of a backend and back
``quantize``    the compressed form of one weight
``compensate``  the adapter of one layer
``layer``       one layer solved: nothing is read or written
``moments``     second moments of the inputs of a block's layers
``shards``      what a finished step left, written and vouched for
``readback``    the same, read back as dense values
``blocks``      the loop over the blocks
``perplexity``  perplexities of the record, and distances from the original
``record``      the plan of a run and its record, ``lowbit.json``
``output``      adapter, index and configuration: what makes a directory loadable
``readme``      ``README.md`` of an output
==============  ====================================================================================

Importing this package imports none of them.
"""
