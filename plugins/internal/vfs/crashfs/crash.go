package crashfs

import (
	"math/rand/v2"
	"slices"
)

// sectorBytes is what a disk writes as a whole.
const sectorBytes = 512

// Seeds that do not leave it to chance.
const (
	// Nothing survives that was not synced.
	Nothing uint64 = iota
	// Everything survives, as if the machine had stopped with empty buffers.
	Everything
	// Lengths and names survive, and none of the bytes that were not synced: the files end in zeros.
	Lengths
	// Random is the first seed under which chance decides.
	Random
)

// Crash returns the file system as the next boot finds it: at rest, all of it synced, with a count of calls of its own.
// f is gone afterwards, with every file that is open in it, and can be looked at with other seeds.
func (f *FS) Crash(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone, f.stop = true, len(f.calls)
	b := &boot{old: f, dice: rand.New(rand.NewPCG(seed, 0)), seed: seed, names: map[*node]map[string]*node{}, twins: map[*node]*node{}}
	for _, c := range b.survivors() {
		for _, e := range *c {
			e.set(b.namesOf(e.dir))
		}
	}
	fresh := &FS{opt: f.opt, stop: -1, lastIno: f.lastIno}
	fresh.root = b.twin(f.root)
	fresh.root.links++
	return fresh
}

// freeze copies f as it stands, with what is not synced. The copy is gone. The caller has f.mu.
func (f *FS) freeze() *FS {
	copies := map[*node]*node{}
	frozen := &FS{
		opt: f.opt, root: f.root.freeze(copies), lastIno: f.lastIno, calls: slices.Clip(f.calls), stop: len(f.calls), gone: true,
	}
	for _, c := range f.pending {
		moved := make(change, len(*c))
		for i, e := range *c {
			moved[i] = edit{e.dir.freeze(copies), e.name, e.node.freeze(copies)}
		}
		frozen.pending = append(frozen.pending, &moved)
	}
	return frozen
}

// freeze copies n and what lies below it. Bytes are shared: nothing changes them in place.
func (n *node) freeze(copies map[*node]*node) *node {
	if n == nil || copies[n] != nil {
		return copies[n]
	}
	c := &node{ino: n.ino, links: n.links, data: n.data, synced: n.synced, writes: slices.Clip(n.writes), ahead: n.ahead}
	copies[n] = c
	if n.isDir() {
		c.names, c.syncedNames = freezeNames(n.names, copies), freezeNames(n.syncedNames, copies)
	}
	return c
}

func freezeNames(names map[string]*node, copies map[*node]*node) map[string]*node {
	frozen := make(map[string]*node, len(names))
	for name, n := range names {
		frozen[name] = n.freeze(copies)
	}
	return frozen
}

// boot is one way in which a crash may have gone.
type boot struct {
	old   *FS
	dice  *rand.Rand
	seed  uint64
	names map[*node]map[string]*node // of the directories in which more survived than was synced
	twins map[*node]*node            // inodes of old and what became of them
}

// survivors picks the changes of names that reached the disk without a sync.
func (b *boot) survivors() []*change {
	all := b.old.pending
	switch b.seed {
	case Nothing:
		return nil
	case Everything, Lengths:
		return all
	}
	if b.old.opt.Unordered && b.dice.IntN(2) == 0 {
		return b.unordered(all)
	}
	return all[:b.dice.IntN(len(all)+1)]
}

// unordered keeps each change or not, but none without an earlier change of the same name.
func (b *boot) unordered(all []*change) []*change {
	type name struct {
		dir  *node
		name string
	}
	lost := map[name]bool{}
	var kept []*change
	for _, c := range all {
		keep := b.dice.IntN(2) == 0 && !slices.ContainsFunc(*c, func(e edit) bool { return lost[name{e.dir, e.name}] })
		if keep {
			kept = append(kept, c)
			continue
		}
		for _, e := range *c {
			lost[name{e.dir, e.name}] = true
		}
	}
	return kept
}

// namesOf is a directory's names, to be changed.
func (b *boot) namesOf(dir *node) map[string]*node {
	names := b.names[dir]
	if names == nil {
		names = make(map[string]*node, len(dir.syncedNames))
		for name, n := range dir.syncedNames {
			names[name] = n
		}
		b.names[dir] = names
	}
	return names
}

// twin is what became of an inode. What no name leads to is lost.
func (b *boot) twin(n *node) *node {
	if t := b.twins[n]; t != nil {
		return t
	}
	t := &node{ino: n.ino, ahead: n.ahead}
	b.twins[n] = t
	if !n.isDir() {
		t.data = b.content(n)
		t.synced = t.data
		return t
	}
	names := b.namesOf(n)
	t.names, t.syncedNames = make(map[string]*node, len(names)), make(map[string]*node, len(names))
	for _, name := range sortedNames(names) {
		child := b.twin(names[name])
		child.links++
		t.names[name], t.syncedNames[name] = child, child
	}
	return t
}

// content is what a file holds. Lengths reach the disk in their order, sectors in any.
func (b *boot) content(n *node) []byte {
	out, size := slices.Clone(n.synced), int64(len(n.synced))
	lengths, sectors := b.luck(len(n.writes))
	for i, w := range n.writes {
		if w.cut {
			if i < lengths {
				out, size = resize(out, w.off), w.off
			}
			continue
		}
		end := w.off + int64(len(w.bytes))
		out = resize(out, max(int64(len(out)), end))
		for at := w.off; at < end; {
			next := min(end, at-at%sectorBytes+sectorBytes)
			part := w.bytes[at-w.off : next-w.off]
			copy(out[at:], part[:sectors(len(part))])
			at = next
		}
		if i < lengths {
			size = max(size, end)
		}
	}
	return resize(out, size)
}

// luck decides for one file how many of its unsynced changes of length survive, and how much of each sector does.
func (b *boot) luck(writes int) (lengths int, sectors func(bytes int) int) {
	none, all := func(int) int { return 0 }, func(bytes int) int { return bytes }
	switch b.seed {
	case Nothing:
		return 0, none
	case Everything:
		return writes, all
	case Lengths:
		return writes, none
	}
	lengths = b.dice.IntN(writes + 1)
	if b.dice.IntN(2) == 0 {
		lengths = writes // otherwise most of what chance leaves is cut off again by a shorter length
	}
	torn := b.old.opt.Torn
	return lengths, func(bytes int) int {
		switch b.dice.IntN(4) {
		case 0, 1:
			return bytes
		case 2:
			if torn {
				return b.dice.IntN(bytes + 1)
			}
		}
		return 0
	}
}
