"""Text-to-image models of diffusers: components opened one by one, without running pipeline code."""
