# tree.py DIR - prints everything a layer can say about each file below DIR, one line each, sorted by name.
# TOLERATE_GHOSTS=1: names that are listed and cannot be looked up are passed over instead of ending the program.
import hashlib, os, stat, sys

root = os.fsencode(sys.argv[1])
groups = {}
ghosts = os.environ.get("TOLERATE_GHOSTS") == "1"


def describe(path, name):
    try:
        s = os.lstat(path)
    except FileNotFoundError:
        if ghosts:
            return
        raise
    kind = stat.S_IFMT(s.st_mode)
    words = [repr(name), oct(s.st_mode), f"{s.st_uid}:{s.st_gid}"]
    if name:  # the root's own time is the mount's business
        words.append(str(s.st_mtime_ns))
    if kind == stat.S_IFLNK:
        words.append("-> " + repr(os.readlink(path)))
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        words.append(f"{os.major(s.st_rdev)}:{os.minor(s.st_rdev)}")
    if kind == stat.S_IFREG:
        h = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
        words += [str(s.st_size), h.hexdigest()]
    if kind != stat.S_IFDIR and s.st_nlink > 1:
        # On overlay the count includes names that an upper layer removed: what counts is the names that are there.
        first = groups.setdefault((s.st_dev, s.st_ino), name)
        if first != name:
            words.append("same as " + repr(first))
    for x in sorted(os.listxattr(path, follow_symlinks=False)):
        if x.startswith(("trusted.overlay.", "user.overlay.")):
            continue
        words.append(f"{x}={os.getxattr(path, x, follow_symlinks=False).hex()}")
    print(" ".join(words))
    if kind == stat.S_IFDIR:
        for child in sorted(os.listdir(path)):
            describe(os.path.join(path, child), name + b"/" + child)


sys.setrecursionlimit(100000)
describe(root, b"")
