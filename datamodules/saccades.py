"""What an event camera reports while it moves along three saccades in front of an image."""

import torch
from torch import Tensor
from torch.nn import functional

# Of the path, per time bin: a pixel crosses its contrast threshold between two frames, so frames must be close.
_FRAMES_PER_BIN = 2
# Of a display's brightness, which a black pixel still gives off: the logarithm needs one.
_BLACK = 0.1


def saccade_events(
    images: Tensor, num_steps: int = 12, *, amplitude: float = 4.0, contrast: float = 0.4, pixel: int = 1
) -> Tensor:
    r"""Return the events of a camera that moves along an isosceles triangle, three saccades of equal duration.

    Each pixel remembers the brightness :math:`\ell` of its last event. With :math:`I_k` the image as the camera sees it
    in frame k,

    .. math::
        n_k = \operatorname{trunc}\frac{\log(I_k + 0.1) - \ell_{k-1}}{C}, \qquad \ell_k = \ell_{k-1} + n_k C

    where :math:`C` is ``contrast``: an ON event where :math:`n_k > 0`, an OFF event where :math:`n_k < 0`. The events
    are a function of the image alone; each of the ``num_steps`` time bins takes two frames and notes whether there was
    an event.

    Args:
        images: Brightness in [0, 1], ``(N, 1, H, W)``, floating point. What lies outside of them is black.
        num_steps: Time bins T, at least 1.
        amplitude: Pixels between the corners of the triangle's base, and its height; above 0.
        contrast: Change of the logarithm of brightness per event, above 0.
        pixel: Side of the camera's pixels in those of the image, a divisor of H and W; each sees the mean.

    Returns:
        Zeros and ones ``(N, T, 2, H / pixel, W / pixel)`` in the dtype of ``images``: polarity 0 is ON, 1 is OFF.

    Raises:
        ValueError: If ``images`` have another shape or an argument is out of its range.

    Example:
        A dot, seen by a camera that moves down and right first: it leaves its place for one above.

        >>> import torch
        >>> from datamodules.saccades import saccade_events
        >>> dot = torch.zeros(1, 1, 5, 5)
        >>> dot[..., 2, 2] = 1.0
        >>> events = saccade_events(dot, num_steps=3, amplitude=2.0)
        >>> events.shape
        torch.Size([1, 3, 2, 5, 5])
        >>> events[0, 0].flatten(1).any(1)
        tensor([True, True])

    Source:
        Orchard, Jayawant, Cohen and Thakor 2015, *Converting static image datasets to spiking neuromorphic datasets
        using saccades* (N-MNIST), arXiv 1507.07629: three saccades of 100 ms each along an isosceles triangle, there
        with a real camera, its noise, and 34 x 34 pixels.
    """
    check_saccades(num_steps, amplitude, contrast, pixel)
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"saccade_events: images must be (N, 1, H, W), got {tuple(images.shape)}.")
    if images.shape[2] % pixel or images.shape[3] % pixel:
        raise ValueError(f"saccade_events: pixels of side {pixel} do not tile images of {tuple(images.shape[2:])}.")
    path = _path(_FRAMES_PER_BIN * num_steps, amplitude)
    brightness = (_frames(images, path, pixel) + _BLACK).log().unbind(1)
    known = brightness[0].clone()
    events = images.new_zeros(len(images), num_steps, 2, *known.shape[1:])
    for frame, seen in enumerate(brightness[1:]):
        crossed = ((seen - known) / contrast).trunc_()
        known.add_(crossed, alpha=contrast)
        of_bin = events[:, frame // _FRAMES_PER_BIN]
        of_bin[:, 0].masked_fill_(crossed > 0, 1)
        of_bin[:, 1].masked_fill_(crossed < 0, 1)
    return events


def check_saccades(num_steps: int, amplitude: float, contrast: float, pixel: int) -> None:
    """Refuse a camera that would see nothing.

    Args:
        num_steps: To be at least 1.
        amplitude: To be above 0.
        contrast: To be above 0.
        pixel: To be at least 1.

    Raises:
        ValueError: If one is not.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1 time bin, got {num_steps}.")
    if not amplitude > 0:
        raise ValueError(f"amplitude must be above 0 pixels, got {amplitude}: a camera at rest sees no events.")
    if not contrast > 0:
        raise ValueError(f"contrast must be above 0, got {contrast}.")
    if pixel < 1:
        raise ValueError(f"pixel must be at least 1 pixel of the image, got {pixel}.")


def _path(frames: int, amplitude: float) -> Tensor:
    """Return where the camera is in each frame and at the start, (frames + 1, 2), down and right of the middle."""
    corners = amplitude * torch.tensor([[-0.5, -0.5], [0.5, 0.0], [-0.5, 0.5], [-0.5, -0.5]])
    # Not back to where it began: what is seen there differs by whole thresholds, and rounding would decide on events.
    time = torch.linspace(0, 3, frames + 2)[:-1]
    saccade = time.long().clamp(max=2)
    return torch.lerp(corners[saccade], corners[saccade + 1], (time - saccade)[:, None])


def _frames(images: Tensor, path: Tensor, pixel: int) -> Tensor:
    """Return what the camera sees at each place, (N, frames, H, W), between pixels by bilinear interpolation."""
    reach = int(path.abs().max().ceil())
    taps = torch.arange(-reach, reach + pixel)
    covered = torch.arange(pixel)[:, None]
    down, right = ((1 - (place[:, None, None] + covered - taps).abs()).clamp(min=0).mean(1) for place in path.unbind(1))
    kernels = down[:, :, None] * right[:, None, :]
    return functional.conv2d(images, kernels[:, None].to(images), padding=reach, stride=pixel)
