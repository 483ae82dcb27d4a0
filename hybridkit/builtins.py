"""The built-in strategies, registered through the same hook as everybody else's."""

from __future__ import annotations

from hybridkit.hookspecs import Strategy, hookimpl


@hookimpl
def hybridkit_strategies() -> list[Strategy]:
    """Return the strategies that come with hybridkit."""
    return [
        Strategy("lr_controller", "constant", "multiplier 1 at every step", "hybridkit.optim.controllers.schedules:Constant"),
        Strategy("lr_controller", "cosine", "warm-up, then half a cosine down", "hybridkit.optim.controllers.schedules:Cosine"),
        Strategy("lr_controller", "wsd", "warm-up, stable, linear decay at the end", "hybridkit.optim.controllers.schedules:WSD"),
        Strategy("lr_controller", "hypergradient", "online, from the inner product of successive gradients", "hybridkit.optim.controllers.hypergradient:Hypergradient"),
        Strategy("lr_controller", "aux-nn", "an auxiliary network that learns online from what its decisions did", "hybridkit.optim.controllers.aux_nn:AuxNN"),
        Strategy("clusterer", "none", "no clusters: every sample is in cluster 0", "hybridkit.clustering.clusterers:NoClusters"),
        Strategy("clusterer", "kmeans", "Lloyd's k-means (scikit-learn)", "hybridkit.clustering.clusterers:KMeans"),
        Strategy("clusterer", "minibatch-kmeans", "mini-batch k-means (scikit-learn), for large data", "hybridkit.clustering.clusterers:MiniBatchKMeans"),
        Strategy("constraint", "none", "no trust region", "hybridkit.optim.constraints.none:Unconstrained"),
        Strategy("constraint", "l2", "the whole update inside one l2 ball", "hybridkit.optim.constraints.l2:L2Ball"),
        Strategy("constraint", "per-cluster", "an l2 ball for each parameter cluster", "hybridkit.optim.constraints.per_cluster:PerCluster"),
        Strategy("constraint", "per-layer", "each tensor's update relative to its norm", "hybridkit.optim.constraints.per_layer:PerLayer"),
        Strategy("constraint", "spectral", "each matrix update's spectral norm", "hybridkit.optim.constraints.spectral:Spectral"),
        Strategy("quantizer", "ternary-absmean", "ternary, scale = mean |w| (BitNet b1.58)", "hybridkit.quant.ternary:TernaryAbsmean"),
        Strategy("quantizer", "ternary-mse", "ternary, threshold and scale of least squared error", "hybridkit.quant.ternary:TernaryMSE"),
        Strategy("quantizer", "ternary-learned", "ternary, learned step (LSQ, ParetoQ)", "hybridkit.quant.ternary:TernaryLearned"),
        Strategy("quantizer", "binary", "1-bit, scaled sign", "hybridkit.quant.binary:Binary"),
        Strategy("quantizer", "nbit", "2, 4 or 8 bits, symmetric, optionally in groups", "hybridkit.quant.nbit:NBit"),
        Strategy("optimizer", "adamw", "AdamW (torch)", "hybridkit.optim.optimizers.adamw:AdamW"),
        Strategy("optimizer", "muon", "Muon for matrices, AdamW for the rest (torch)", "hybridkit.optim.optimizers.muon:Muon"),
        Strategy("optimizer", "sgd", "SGD with momentum (torch)", "hybridkit.optim.optimizers.sgd:SGD"),
        Strategy("exporter", "onnx", "our packed operators with a portable body in the file", "hybridkit.exporting.onnx:OnnxExporter"),
        Strategy("exporter", "matmulnbits", "stock ONNX Runtime operators only", "hybridkit.exporting.matmulnbits:MatMulNBitsExporter"),
        Strategy("task", "digits", "8 x 8 handwritten digits (scikit-learn), MLP", "hybridkit.tasks.digits:Digits"),
        Strategy("task", "fashion-mnist", "28 x 28 clothing images, small convolutional net", "hybridkit.tasks.fashion_mnist:FashionMNIST"),
        Strategy("task", "text", "byte-level language model on a file or folder", "hybridkit.tasks.text:Text"),
    ]
