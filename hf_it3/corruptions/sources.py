"""Where the severity parameters come from."""

IMAGENET_C = (
    "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
    "ICLR 2019; parameters of github.com/hendrycks/robustness for CIFAR-10-C, Tiny ImageNet-C and ImageNet-C"
)
MNIST_C = (
    "Mu and Gilmer, MNIST-C: A Robustness Benchmark for Computer Vision, 2019 (arXiv 1906.02337); "
    "parameters of github.com/google-research/mnist-c"
)
DIGITS_SHIFT = "the conditions under which this project measures adaptation on MNIST"
