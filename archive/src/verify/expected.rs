//! What layers on each other say.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::entry::{Entry, EntryKind};
use crate::whiteout::Whiteout;

/// Deeper paths than any real layer has; what is below is not expected to be anything.
const MAX_DEPTH: usize = 4096;

/// What is expected at a name.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// What a member states. For a hard link: what its target states, with the owner, mode and times of the link.
    Stated(Arc<Entry>),
    /// A directory, of whatever owner, mode and times.
    Implied,
    /// Anything, or nothing.
    Unknown,
}

pub(super) type Children = BTreeMap<Box<[u8]>, Arc<Node>>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) children: Children,
    /// Names of one inode that this layer states have the same number; 0 for none.
    group: u32,
}

impl Node {
    fn new(what: What) -> Self {
        Self { what, children: Children::new(), group: 0 }
    }

    pub(super) fn is_directory(&self) -> bool {
        match &self.what {
            What::Stated(entry) => entry.kind == EntryKind::Directory,
            What::Implied => true,
            What::Unknown => false,
        }
    }
}

/// The tree that a layer and all layers below it make, by what their archives state.
///
/// Clones share what they have in common, so that one for each layer of a deep stack costs little more than one.
#[derive(Clone, Debug)]
pub struct ExpectedTree {
    pub(super) root: Arc<Node>,
}

impl Default for ExpectedTree {
    fn default() -> Self {
        Self { root: Arc::new(Node::new(What::Implied)) }
    }
}

/// The names of one inode, and what was said of it last.
struct Group {
    entry: Arc<Entry>,
    paths: Vec<Vec<Vec<u8>>>,
}

impl ExpectedTree {
    /// Puts a layer on top: first its whiteouts, which hit what lower layers have wherever they stand in the archive, then
    /// its members in order, then the links that come before their targets.
    pub fn apply(&mut self, members: &[Entry]) {
        let mut layer = Applying { root: Arc::make_mut(&mut self.root), stated: HashSet::new(), groups: Vec::new() };
        let mut own = Vec::with_capacity(members.len());
        for member in members {
            let Some(path) = components(&member.path) else { continue };
            let Some((last, parents)) = path.split_last() else { continue };
            if parents.iter().any(|name| !matches!(Whiteout::parse_ancestor(name), Ok(None))) {
                continue;
            }
            match Whiteout::parse(last) {
                Ok(None) => {
                    if member.kind == EntryKind::Directory {
                        layer.stated.insert(path.clone());
                    }
                    own.push((path, member));
                }
                Ok(Some(Whiteout::Remove(name))) => layer.remove(parents, Some(name)),
                Ok(Some(Whiteout::Opaque)) => layer.remove(parents, None),
                Ok(Some(Whiteout::AufsMetadata)) | Err(_) => {}
            }
        }
        let mut waiting = Vec::new();
        for (path, member) in &own {
            if member.kind == EntryKind::HardLink {
                if !layer.link(path, member) {
                    waiting.push((path, *member));
                }
            } else {
                layer.put(path, What::Stated(Arc::new((*member).clone())), 0);
            }
        }
        for (path, member) in waiting {
            // A link to a link that waits too; or a link to nothing, which no engine accepts.
            if !layer.link_behind(path, member) {
                layer.put(path, What::Unknown, 0);
            }
        }
        layer.settle();
    }
}

struct Applying<'t> {
    root: &'t mut Node,
    /// Directories that this layer states.
    stated: HashSet<Vec<Vec<u8>>>,
    groups: Vec<Group>,
}

impl Applying<'_> {
    /// The directory of that path. Where there is none it is made; where there is a symbolic link, there is none.
    fn directory(&mut self, path: &[Vec<u8>], make: &What) -> Option<&mut Node> {
        // A first look: a link on the way makes its place, and the place that it leads to, unknown.
        if let Some(depth) = self.link_on_the_way(path) {
            self.forget_link(path, depth);
            return None;
        }
        let mut at: &mut Node = self.root;
        for (depth, name) in path.iter().enumerate() {
            let is_stated = path.get(..=depth).is_some_and(|path| self.stated.contains(path));
            let child =
                at.children.entry(name.clone().into_boxed_slice()).or_insert_with(|| Arc::new(Node::new(make.clone())));
            let child = Arc::make_mut(child);
            match (&child.what, make) {
                (What::Unknown, What::Unknown) => return None,
                (What::Unknown, _) => *child = Node::new(What::Implied),
                _ if !child.is_directory() => *child = Node::new(make.clone()),
                // Something changes in it, or may have been copied up for that, and nobody states what became of it.
                (What::Stated(_), _) if !is_stated => child.what = What::Implied,
                _ => {}
            }
            if matches!(child.what, What::Unknown) {
                return None;
            }
            at = child;
        }
        Some(at)
    }

    fn link_on_the_way(&self, path: &[Vec<u8>]) -> Option<usize> {
        let mut at: &Node = self.root;
        for (depth, name) in path.iter().enumerate() {
            at = at.children.get(name.as_slice())?;
            if matches!(&at.what, What::Stated(entry) if entry.kind == EntryKind::Symlink) {
                return Some(depth);
            }
        }
        None
    }

    /// Some engines follow the link, some put a directory in its place.
    fn forget_link(&mut self, path: &[Vec<u8>], depth: usize) {
        let Some((name, parents)) = path.get(..=depth).and_then(<[_]>::split_last) else { return };
        let mut target = None;
        let mut at: &mut Node = self.root;
        for parent in parents {
            let Some(child) = at.children.get_mut(parent.as_slice()) else { return };
            at = Arc::make_mut(child);
        }
        if let Some(child) = at.children.get_mut(name.as_slice()) {
            if let What::Stated(link) = &child.what {
                target = Some(link.link_target.clone());
            }
            *child = Arc::new(Node::new(What::Unknown));
        }
        let Some(target) = target else { return };
        let mut joined = if target.starts_with(b"/") { Vec::new() } else { parents.join(&b'/') };
        joined.push(b'/');
        joined.extend_from_slice(&target);
        let Some(mut place) = components(&joined) else { return };
        place.extend(path.iter().skip(depth.saturating_add(1)).take(1).cloned());
        self.forget(&place);
    }

    /// Expects nothing any more at or below a path, nor of the directories above it.
    fn forget(&mut self, path: &[Vec<u8>]) {
        let Some((last, parents)) = path.split_last() else {
            self.root.children.clear();
            self.root.what = What::Unknown;
            return;
        };
        let mut at: &mut Node = self.root;
        for name in parents {
            if !at.children.contains_key(name.as_slice()) {
                at.children.insert(name.clone().into_boxed_slice(), Arc::new(Node::new(What::Unknown)));
                return;
            }
            let Some(child) = at.children.get_mut(name.as_slice()) else { return };
            let child = Arc::make_mut(child);
            match &child.what {
                What::Unknown => return,
                What::Stated(entry) if entry.kind != EntryKind::Directory => {
                    *child = Node::new(What::Unknown);
                    return;
                }
                _ => child.what = What::Implied,
            }
            at = child;
        }
        at.children.insert(last.clone().into_boxed_slice(), Arc::new(Node::new(What::Unknown)));
    }

    /// A whiteout: of one name, or of all that lower layers have.
    fn remove(&mut self, directory: &[Vec<u8>], name: Option<&[u8]>) {
        let Some(directory) = self.directory(directory, &What::Unknown) else { return };
        match name {
            Some(name) => {
                directory.children.remove(name);
            }
            None => directory.children.clear(),
        }
    }

    fn put(&mut self, path: &[Vec<u8>], what: What, group: u32) {
        let Some((last, parents)) = path.split_last() else { return };
        let Some(directory) = self.directory(parents, &What::Implied) else { return };
        let stays_directory = matches!(&what, What::Stated(entry) if entry.kind == EntryKind::Directory);
        let node = directory.children.entry(last.clone().into_boxed_slice());
        let node = Arc::make_mut(node.or_insert_with(|| Arc::new(Node::new(What::Implied))));
        if !(stays_directory && node.is_directory()) {
            node.children.clear();
        }
        node.what = what;
        node.group = group;
    }

    fn find(&self, path: &[Vec<u8>]) -> Option<&Node> {
        let mut at: &Node = self.root;
        for name in path {
            at = at.children.get(name.as_slice())?;
        }
        Some(at)
    }

    /// Makes a link to what is there already; false when nothing is.
    fn link(&mut self, path: &[Vec<u8>], member: &Entry) -> bool {
        let Some(target) = components(&member.link_target) else { return false };
        let Some(found) = self.find(&target) else {
            // Below a link or in a place that nothing is known of, the target may be there all the same.
            let hidden = (1..=target.len()).any(|end| {
                let node = target.get(..end).and_then(|path| self.find(path));
                node.is_some_and(|node| match &node.what {
                    What::Unknown => true,
                    What::Stated(entry) => entry.kind == EntryKind::Symlink,
                    What::Implied => false,
                })
            });
            if hidden {
                self.put(path, What::Unknown, 0);
            }
            return hidden;
        };
        let What::Stated(stated) = &found.what else {
            self.put(path, What::Unknown, 0);
            return true;
        };
        let restated = Arc::new(restate(stated, member));
        let mut group = usize::try_from(found.group).unwrap_or(0);
        if group == 0 {
            self.groups.push(Group { entry: Arc::clone(&restated), paths: vec![target.clone()] });
            group = self.groups.len();
        }
        if let Some(known) = self.groups.get_mut(group.saturating_sub(1)) {
            known.entry = Arc::clone(&restated);
            known.paths.push(path.to_vec());
        }
        let group = u32::try_from(group).unwrap_or(0);
        self.put(&target, What::Stated(Arc::clone(&restated)), group);
        self.put(path, What::Stated(restated), group);
        true
    }

    /// Makes a link that came before its target, which keeps the last word.
    fn link_behind(&mut self, path: &[Vec<u8>], member: &Entry) -> bool {
        let target = components(&member.link_target);
        let found = target.as_ref().and_then(|target| self.find(target)).map(|node| node.what.clone());
        match found {
            Some(What::Stated(entry)) if entry.kind != EntryKind::Directory => {
                self.put(path, What::Stated(entry), 0);
                true
            }
            _ => false,
        }
    }

    /// Every name of an inode says what was said of it last.
    fn settle(&mut self) {
        for (number, group) in std::mem::take(&mut self.groups).into_iter().enumerate() {
            for path in group.paths {
                let mut at: &mut Node = self.root;
                let mut missing = false;
                for name in &path {
                    let Some(child) = at.children.get_mut(name.as_slice()) else {
                        missing = true;
                        break;
                    };
                    at = Arc::make_mut(child);
                }
                if !missing && usize::try_from(at.group).unwrap_or(0) == number.saturating_add(1) {
                    at.what = What::Stated(Arc::clone(&group.entry));
                    at.group = 0;
                }
            }
        }
    }
}

/// What a target is after a link has stated it anew.
fn restate(target: &Entry, link: &Entry) -> Entry {
    let mut entry = target.clone();
    let (metadata, new) = (&mut entry.metadata, &link.metadata);
    (metadata.mode, metadata.uid, metadata.gid) = (new.mode, new.uid, new.gid);
    (metadata.mtime, metadata.atime) = (new.mtime, new.atime);
    for (name, value) in &new.xattrs {
        match metadata.xattrs.binary_search_by(|(known, _)| known.cmp(name)) {
            Ok(at) => {
                if let Some((_, old)) = metadata.xattrs.get_mut(at) {
                    old.clone_from(value);
                }
            }
            Err(at) => metadata.xattrs.insert(at, (name.clone(), value.clone())),
        }
    }
    entry
}

/// The components of a member's name, cleaned; `..` never leads above the root. `None` for what is too deep.
fn components(name: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut path: Vec<Vec<u8>> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            _ => path.push(component.to_vec()),
        }
    }
    (path.len() <= MAX_DEPTH).then_some(path)
}
