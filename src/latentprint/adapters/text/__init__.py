"""Text-to-image models of diffusers: components opened one by one, no pipeline code run."""
