"""What a layer's computation keeps alive at its fullest moments, a module a family of architectures. Pure.

Each module offers functions of the type `layers.Peaks`. Activations are f32; u = tokens of a micro-batch.
"""
