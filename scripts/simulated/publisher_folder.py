"""Publisher with a folder, and the web server that serves the folder."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from eir.lists.releases.publish import ReleaseSpec
from eir.lists.sources.folder_index import INDEX
from eir.lists.sources.folder_writer import publish_into

from .releases import STARTED, public
from .web_folder import Web

NAME = "stolen"
ROWS = [f"001010060000{n:02}" for n in range(60)]
_published = {}
"""Results of earlier publications by the digest of the folder and the arguments: result, manifest, changed and removed files."""


class Register:
    """A publisher, and the web server with its folder."""

    def __init__(self, folder, key, *, context=None, **how):
        self.folder, self.key, self.serial = folder / "www", key, 0
        self.folder.mkdir(parents=True)
        self.signers = folder / "signers"
        self.signers.write_text(f"agency {public(key)}")
        self.web = Web(self.folder, context=context, **how)

    def publish(self, full=None, *, added=(), ahead_s=0, key=None, **how):
        """Publish a release into the folder. The same release in the same folder is made once in a process, and copied."""
        now = STARTED + timedelta(seconds=ahead_s)
        file = self.folder.parent / ("x.csv" if full is not None else "x-added.csv")
        file.write_text("imei\n" + "".join(f"{row}\n" for row in (full if full is not None else added)))
        self.serial += 1
        given = {
            "list": NAME,
            "serial": self.serial,
            "base": None if full is not None else self.serial - 1,
            "keys": (key or self.key,),
            "files": (file,),
        }
        options = {name: how.pop(name) for name in ("keep", "new_key", "warn") if name in how}
        given |= {"issued": now, "expires": now + timedelta(days=9)} | how
        before = self._files()
        identity = hashlib.sha256(repr((file.name, file.read_bytes(), given, options, before)).encode()).digest()
        if identity not in _published:
            with ThreadPoolExecutor(1) as aside:  # the caller may have a loop of its own
                placed = aside.submit(publish_into, self.folder, ReleaseSpec(**given), **options).result()
            after = self._files()
            changed = {path: after[path] for path in after if before.get(path) != after[path]}
            _published[identity] = (
                placed,
                placed.published.manifest.relative_to(self.folder),
                changed,
                before.keys() - after,
            )
            return placed
        placed, manifest, changed, removed = _published[identity]
        self._change_files(changed, removed)
        return replace(placed, published=replace(placed.published, manifest=self.folder / manifest))

    def _files(self):
        return {path.relative_to(self.folder): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def _change_files(self, changed, removed):
        """Change the folder as `publish_into` does: the index last, then delete the other releases."""
        for path in sorted(changed, key=lambda path: path.name == INDEX):
            (self.folder / path).parent.mkdir(exist_ok=True)
            new = self.folder.parent / "new"
            new.write_bytes(changed[path])
            new.replace(self.folder / path)
        for path in removed:
            (self.folder / path).unlink()
            if not any((self.folder / path).parent.iterdir()):
                (self.folder / path).parent.rmdir()
