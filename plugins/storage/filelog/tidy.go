package filelog

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// tidyPart does for one partition what no caller waits for. A long call for that one must not hold up the others.
func (s *Store) tidyPart(ctx context.Context, name string) {
	if p, ok := s.enterAtOnce(name); ok {
		defer s.leave(p)
		s.tidyOrTell(ctx, p)
	}
}

func (s *Store) tidyOrTell(ctx context.Context, p *part) {
	if err := s.tidy(ctx, p); err != nil && ctx.Err() == nil {
		s.workerFailed("indexes of "+p.name, err)
	}
}

// tidy writes the index entries that were noted, completes and syncs the indexes of segments that were sealed, saves
// their stamps, and lets the recovery point follow. The caller has the partition's turn.
func (s *Store) tidy(ctx context.Context, p *part) error {
	dir := s.disk.partition(p.name)
	for {
		p.mu.Lock()
		st := &p.state
		if len(st.segments) == 0 || st.failed != nil {
			p.mu.Unlock()
			return nil
		}
		sealing := st.sealing > 0
		g := st.segments[len(st.segments)-1-st.sealing]
		p.mu.Unlock()
		if !sealing {
			break
		}
		if err := s.index(ctx, p, g, indexSealed); err != nil {
			return fmt.Errorf("segment %d: %w", g.Base, err)
		}
		failpoint.Hit("plugin.seal.indexed")
		if err := s.withReserve(func() error { return s.disk.fs.SyncDir(dir) }); err != nil {
			return err
		}
		p.mu.Lock()
		p.state.sealing--
		p.mu.Unlock()
	}
	failpoint.Hit("plugin.seal.synced")
	if err := s.mend(ctx, p); err != nil {
		return err
	}
	failpoint.Hit("plugin.note.indexed")
	if err := s.saveStamps(p); err != nil {
		return err
	}
	failpoint.Hit("plugin.seal.stamped")
	s.follow(p)
	return nil
}

// follow sets the partition's recovery point in the checkpoint.
func (s *Store) follow(p *part) {
	p.mu.Lock()
	st := &p.state
	st.advance()
	which, point, changed := st.which, st.point, st.point > 0
	p.mu.Unlock()
	if changed {
		s.recoveryPoints.set(which, point)
	}
}

// mend writes what waits for the active segment's indexes, and makes again those that lie.
func (s *Store) mend(ctx context.Context, p *part) error {
	p.mu.Lock()
	var todo []*segment
	active, parked := p.state.active(), p.state.parked
	for _, g := range p.state.segments {
		if g.x.broken || g == active && (len(g.x.pending) > 0 || parked) {
			todo = append(todo, g)
		}
	}
	p.mu.Unlock()
	for _, g := range todo {
		reach := indexSealed
		switch {
		case g == active && parked:
			reach = indexWhole
		case g == active:
			reach = indexNoted
		}
		if err := s.index(ctx, p, g, reach); err != nil {
			return fmt.Errorf("segment %d: %w", g.Base, err)
		}
	}
	return nil
}

// reach is how far indexes are to go.
type reach int

const (
	indexNoted  reach = iota // by the entries that were noted
	indexWhole               // to the segment's end, so that its latest time is known: a core that comes back asks the store
	indexSealed              // that, for good
)

// index brings the index files of g up to what is known of it: of a sealed segment all, durably but for new names.
// What goes wrong leaves them to be made again.
func (s *Store) index(ctx context.Context, p *part, g *segment, to reach) error {
	dir := s.disk.partition(p.name)
	p.mu.Lock()
	known, x := g.Segment, g.x
	p.mu.Unlock()
	noted, lied := len(x.pending), x.broken
	if lied {
		x = noIndexes()
	}
	sealed, whole := to == indexSealed, to != indexNoted || lied
	err := s.withReserve(func() error {
		w := &indexer{disk: s.disk, dir: dir, base: known.Base, x: x}
		err := s.fill(ctx, w, known, whole)
		if errors.Is(err, errIndexLies) || errors.Is(err, errIndexShort) {
			*w = indexer{disk: s.disk, dir: dir, base: known.Base, x: noIndexes()}
			err = s.fill(ctx, w, known, true)
		}
		if err == nil {
			if sealed {
				w.stamp()
			}
			err = w.flush(sealed)
		}
		if err == nil {
			x = w.x
		}
		return err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := g.x.pending
	if err != nil {
		g.x = noIndexes()
		g.x.broken = true
		return err
	}
	again := g.x.broken && !lied // found out meanwhile
	g.x = x
	g.x.pending, g.x.broken = slices.Clone(waiting[min(noted, len(waiting)):]), again
	g.MaxTimestamp = max(g.MaxTimestamp, x.latest.MaxTimestamp)
	return nil
}

// fill gives w the entries that wait, and with whole all batches after the last entry.
func (s *Store) fill(ctx context.Context, w *indexer, g storage.Segment, whole bool) error {
	for _, e := range w.x.pending {
		w.entry(e)
	}
	w.x.pending = nil
	if !whole || g.Size == 0 {
		return nil
	}
	f, err := s.disk.fs.Open(segmentPath(w.dir, g.Base), vfs.Read)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	from, next := int64(0), g.Base
	if w.x.offsets > 0 {
		from = w.x.last.Position
	}
	k := walk{file: f, segment: g}
	for at := from; at < g.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := k.header(at)
		if err == nil && (b.LastDelta() < 0 || b.BaseOffset() < next || b.LastOffset() >= g.Next) {
			err = fmt.Errorf("batch of [%d, %d) where %d is next", b.BaseOffset(), b.NextOffset(), next)
		}
		if from > 0 && at == from && (err != nil || b.LastOffset() != w.x.last.Last) || err == nil && w.x.contradicts(b) {
			return fmt.Errorf("%w at position %d", errIndexLies, at)
		}
		if err != nil {
			return fmt.Errorf("position %d: %w", at, err)
		}
		if at == from {
			w.bytes = 0
		}
		w.batch(b, at)
		at, next = at+int64(b.Size()), b.NextOffset()
	}
	w.next = next
	return nil
}

// stampsName is a file of the times at which segments were sealed, by the retention clock. A roll appends a line; the
// file is replaced when most of it speaks of segments that are gone, and when it is damaged. A line that does not carry
// its own sum ends it.
//
//	2 <era of the clock>
//	<base> <milliseconds> <CRC-32C of what stands before, in hex>
const stampsName = "segment-times"

// stampFile is what of that file is known to be on disk.
type stampFile struct {
	size  int64         // 0: it has to be written anew
	lines int           // stamps in it
	next  record.Offset // segments with a lower base have a line
}

// deadStamps is how many lines of segments that are gone a file may have beside as many as there are segments.
const deadStamps = 64

// saveStamps writes the stamps that are missing there.
func (s *Store) saveStamps(p *part) error {
	p.mu.Lock()
	st := &p.state
	file, sealed := st.stamps, st.segments[:len(st.segments)-1]
	if !st.unstamped {
		p.mu.Unlock()
		return nil
	}
	var text []byte
	whole := file.size == 0 || file.lines > 2*len(sealed)+deadStamps
	if whole {
		file, text = stampFile{}, fmt.Appendf(nil, "2 %d\n", s.clock.era)
	}
	for _, g := range sealed {
		if g.Base >= file.next {
			text = appendStamp(text, g)
			file.lines++
			file.next = g.Next
		}
	}
	at := file.size
	file.size += int64(len(text))
	st.unstamped, st.stamps = false, stampFile{} // unknown, until it is written
	p.mu.Unlock()
	path := filepath.Join(s.disk.partition(p.name), stampsName)
	err := s.withReserve(func() error {
		if whole {
			return s.disk.writeDurably(path, text)
		}
		return s.disk.writeAt(path, text, at)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.state.unstamped = true
		return err
	}
	p.state.stamps = file
	return nil
}

func appendStamp(dst []byte, g *segment) []byte {
	from := len(dst)
	dst = fmt.Appendf(dst, "%d %d", g.Base, g.stamp)
	return fmt.Appendf(dst, " %08x\n", crc32.Checksum(dst[from:], crc32.MakeTable(crc32.Castagnoli)))
}

// writeAt writes into a file that is there, durably.
func (d disk) writeAt(path string, content []byte, at int64) error {
	if len(content) == 0 {
		return nil
	}
	f, err := d.fs.Open(path, vfs.Write)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, at)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// loadStamps gives the sealed segments of st their stamps. One that is lost, or of another retention clock, means now.
func (s *Store) loadStamps(dir string, st *state) {
	text, _ := s.disk.readAtMost(filepath.Join(dir, stampsName), checkpointBytesMax)
	stamps, file := parseStamps(string(text), s.clock.era)
	now := s.clock.now()
	for _, g := range st.segments[:len(st.segments)-1] {
		stamp, ok := stamps[g.Base]
		if !ok || stamp > now {
			stamp, file = now, stampFile{}
		}
		g.stamp = stamp
		file.next = g.Next
	}
	st.stamps, st.unstamped = file, file.size == 0 && len(st.segments) > 1
}

// parseStamps reads the file. Where it is damaged or of another clock, it has to be written anew.
func parseStamps(text string, era uint32) (map[record.Offset]int64, stampFile) {
	stamps := map[record.Offset]int64{}
	file := stampFile{size: int64(len(text))}
	first, rest, _ := strings.Cut(text, "\n")
	if first != fmt.Sprintf("2 %d", era) {
		return stamps, stampFile{}
	}
	for line := range strings.Lines(rest) {
		var base, stamp int64
		var sum uint32
		at := strings.LastIndexByte(line, ' ')
		n, err := fmt.Sscanf(line, "%d %d %08x\n", &base, &stamp, &sum)
		if n != 3 || err != nil || !strings.HasSuffix(line, "\n") || sum != crc32.Checksum([]byte(line[:at]), crc32.MakeTable(crc32.Castagnoli)) {
			return stamps, stampFile{}
		}
		stamps[record.Offset(base)] = stamp
		file.lines++
	}
	return stamps, file
}
