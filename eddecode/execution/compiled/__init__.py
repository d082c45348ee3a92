"""Compiled forms of a model's layers, in place while the engine runs it.

A decoder layer is recognized by its parts (`layer_weights`), not by the name of its family. Its weights are one record,
which a backend compiles (`backends`); the result must agree with the layer on a trial (`decoder_layer`). Layers that
are all compiled run as one call (`decoder_stack`). In models that are not recognized, single operations are compiled
(`replace`), or nothing is.
"""
