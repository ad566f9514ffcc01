"""`edgediff push`: a bundle to the Hugging Face hub."""

import click

from edgediff.cli.report import megabytes
from edgediff.cli.running import is_terminal, local_bundle
from edgediff.errors import printable


@click.command()
@click.argument("bundle")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--dry-run", is_flag=True, help="Print the model card and the files, upload nothing.")
def push(bundle: str, repository: str, private: bool, dry_run: bool) -> None:
    """Upload a bundle to the Hugging Face hub, with a model card made from bundle.json.

    BUNDLE is a folder. Its files are compared with their hashes first. The repository OWNER/NAME is
    created if it does not exist; the card replaces its README.md. HF_TOKEN is a token that may
    write. Needs edgediff[hub].
    """
    from edgediff.bundle.card import CARD, model_card
    from edgediff.bundle.folder import Bundle
    from edgediff.bundle.hub_name import parse_target
    from edgediff.bundle.hub_push import files_to_push, push_bundle
    from edgediff.bundle.manifest import MANIFEST

    name = parse_target(repository)
    opened = Bundle.open(local_bundle(bundle))
    files_to_push(opened)
    card = model_card(opened.manifest, name.repository)
    files = opened.manifest.files
    total = sum(spec.size for spec in files.values())
    if dry_run:
        click.echo(printable(card))
        for file, spec in files.items():
            click.echo(f"{printable(file)}  {megabytes(spec.size)}")
        click.echo(f"{MANIFEST}\n{CARD}")
        return
    click.echo(f"uploading {len(files) + 2} files, {megabytes(total)}", err=True)
    click.echo(push_bundle(opened, name, card, private=private, show_bars=is_terminal()))
