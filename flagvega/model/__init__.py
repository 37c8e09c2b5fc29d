"""What a model is made of: layers, parameters, FLOPs and bytes. Pure arithmetic, no engine."""
