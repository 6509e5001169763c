"""Where journals live. The stores are siblings: none knows the others, nor the runtime."""
