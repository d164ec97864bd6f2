"""What somebody could learn from a model about the images it was trained on. Each attack states its errors.

nearest       all generated images held against all training images
membership    scores that tell a training image from others
"""
