"""Images for docker, fetched before any test waits for them."""

from support.cached import Unavailable


def pulled(image: str) -> str:
    """Fetch `image` if it is not there, and say so. Raises Unavailable where docker does not work."""
    try:
        import docker  # type: ignore[import-untyped]
        from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unavailable(str(error)) from None
    try:
        images = docker.from_env().images
        try:
            images.get(image)
        except ImageNotFound:
            images.pull(image)
    except DockerException as error:
        raise Unavailable(str(error).splitlines()[0]) from None
    return f"{image} in docker"


def ready(image: str) -> str | None:
    """`pulled`, with None where docker does not work."""
    try:
        return pulled(image)
    except Unavailable:
        return None
