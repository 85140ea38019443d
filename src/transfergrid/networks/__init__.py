"""What f(x) is: backbones, architectures, joined networks, heads."""
