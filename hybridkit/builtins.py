"""The built-in strategies, registered through the same hook as everybody else's."""

from __future__ import annotations

from hybridkit.hookspecs import Kind, Strategy, hookimpl

# kind -> name -> (target below the package `hybridkit`, one-line summary)
_TABLE: dict[Kind, dict[str, tuple[str, str]]] = {
    "lr_controller": {
        "constant": ("optim.controllers.schedules:Constant", "multiplier 1 at every step"),
        "cosine": ("optim.controllers.schedules:Cosine", "warm-up, then half a cosine down"),
        "wsd": ("optim.controllers.schedules:WSD", "warm-up, stable, linear decay at the end"),
        "hypergradient": (
            "optim.controllers.hypergradient:Hypergradient",
            "online, from the inner product of successive gradients",
        ),
        "relative-step": (
            "optim.controllers.relative_step:RelativeStep",
            "warm-up and decay around a relative step, whatever the learning rate",
        ),
        "trust-ratio": (
            "optim.controllers.trust_ratio:TrustRatio",
            "relative-step, times a factor that follows what steps did to the loss of their own batch",
        ),
        "probe": (
            "optim.controllers.probe:Probe",
            "trust-ratio, bounded by what samples held back say; goes back where they get worse",
        ),
        "aux-nn": (
            "optim.controllers.aux_nn:AuxNN",
            "relative-step, times a network that learns online from what its decisions did",
        ),
    },
    "clusterer": {
        "none": ("clustering.clusterers:NoClusters", "no clusters: every sample is in cluster 0"),
        "kmeans": ("clustering.clusterers:KMeans", "Lloyd's k-means (scikit-learn)"),
        "minibatch-kmeans": (
            "clustering.clusterers:MiniBatchKMeans",
            "mini-batch k-means (scikit-learn), for large data",
        ),
    },
    "constraint": {
        "none": ("optim.constraints.none:Unconstrained", "no trust region"),
        "l2": ("optim.constraints.l2:L2Ball", "the whole update inside one l2 ball"),
        "per-cluster": ("optim.constraints.per_cluster:PerCluster", "an l2 ball for each parameter cluster"),
        "per-layer": ("optim.constraints.per_layer:PerLayer", "each tensor's update relative to its norm"),
        "spectral": ("optim.constraints.spectral:Spectral", "each matrix update's spectral norm"),
    },
    "quantizer": {
        "ternary-absmean": ("quant.ternary:TernaryAbsmean", "ternary, scale = mean |w| (BitNet b1.58)"),
        "ternary-mse": ("quant.ternary:TernaryMSE", "ternary, threshold and scale of least squared error"),
        "ternary-learned": ("quant.ternary:TernaryLearned", "ternary, learned step (LSQ, ParetoQ)"),
        "ternary-sparse": (
            "quant.ternary:TernarySparse",
            "ternary, one of every four weights 0: 1.25 bits (Sherry)",
        ),
        "ternary-softmax": (
            "quant.annealed:TernarySoftmax",
            "ternary at the end of a ramp, by a softmax that cools down (Hestia)",
        ),
        "ternary-deadzone": (
            "quant.annealed:TernaryDeadzone",
            "ternary, zeros act as a bias along the ramp (Tequila)",
        ),
        "binary": ("quant.binary:Binary", "1-bit, scaled sign"),
        "nbit": ("quant.nbit:NBit", "2, 3, 4 or 8 bits, about zero or with an offset, optionally in groups"),
    },
    "optimizer": {
        "adamw": ("optim.optimizers.adamw:AdamW", "AdamW (torch)"),
        "steepest": (
            "optim.optimizers.steepest:Steepest",
            "relative steps of steepest descent, in the norm that fits each parameter",
        ),
        "muon": ("optim.optimizers.muon:Muon", "Muon for matrices, AdamW for the rest (torch)"),
        "sgd": ("optim.optimizers.sgd:SGD", "SGD with momentum (torch)"),
    },
    "exporter": {
        "onnx": ("exporting.onnx:OnnxExporter", "our packed operators with a portable body in the file"),
        "fp32": ("exporting.onnx:Fp32Exporter", "a twin with plain float32 weights, to compare with"),
        "matmulnbits": ("exporting.matmulnbits:MatMulNBitsExporter", "stock ONNX Runtime operators only"),
        "genai": (
            "exporting.genai.exporter:GenaiExporter",
            "a folder with a language model that keeps a cache, for onnxruntime-genai and generate",
        ),
        "hf": (
            "exporting.hf.exporter:HfExporter",
            "a Hugging Face folder for transformers: ternary weights packed as bitnet, or all as floats",
        ),
        "gguf": (
            "exporting.gguf.exporter:GgufExporter",
            "a language model for llama.cpp, in its own types",
        ),
    },
    "task": {
        "digits": ("tasks.digits:Digits", "8 x 8 handwritten digits (scikit-learn), MLP"),
        "fashion-mnist": (
            "tasks.fashion_mnist:FashionMNIST",
            "28 x 28 clothing images, small convolutional net",
        ),
        "text": ("tasks.text:Text", "byte-level language model on a file or folder"),
        "causal-lm": ("tasks.language.causal:CausalLM", "pretrained network: the next token of a corpus"),
        "masked-lm": ("tasks.language.masked:MaskedLM", "pretrained network: covered tokens of a corpus"),
        "text-classification": (
            "tasks.language.classification:TextClassification",
            "pretrained network: classes of texts, or of pairs",
        ),
        "text-embedding": (
            "tasks.language.embedding:TextEmbedding",
            "pretrained network: vectors of sentences, from a teacher or scored pairs",
        ),
        "image-classification": (
            "tasks.vision:ImageClassification",
            "pretrained network: classes of images, one folder each",
        ),
    },
    "source": {  # in the order in which they are asked
        "onnx": ("sources.kinds:OnnxFile", "an ONNX file, to be quantised as it is"),
        "packed": ("sources.kinds:PackedFile", "a packed model, NAME.hk.safetensors"),
        "pretrained": (
            "sources.huggingface:PretrainedNetwork",
            "a pretrained network: hf:OWNER/NAME, a Hugging Face folder, NAME.gguf",
        ),
        "weights": ("sources.kinds:WeightsFile", "weights alone, NAME.safetensors, in one file or several"),
        "run": ("sources.kinds:RunFolder", "a run, or one of its checkpoints"),
        "module": ("sources.kinds:Module", "a network of one's own, package.module:attribute"),
    },
    "metric_sink": {
        "tensorboard": ("sinks.tensorboard:TensorBoard", "event files in the run folder"),
        "wandb": ("sinks.wandb:WandB", "Weights & Biases, online or offline"),
        "mlflow": ("sinks.mlflow:MLflow", "a run on MLflow's tracking server or in its database"),
    },
}


@hookimpl
def hybridkit_strategies() -> list[Strategy]:
    """Return the strategies that come with hybridkit."""
    return [
        Strategy(kind, name, summary, f"hybridkit.{target}")
        for kind, strategies in _TABLE.items()
        for name, (target, summary) in strategies.items()
    ]
