package memory

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Open implements storage.Store.
func (s *Store) Open(_ context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if err := r.Partition.Valid(); err != nil {
		return storage.Opened{}, err
	}
	if r.Adopt {
		return storage.Opened{}, fmt.Errorf("%w: nothing is adopted into memory", storage.ErrDataMissing)
	}
	p := s.part(r.Partition)
	defer p.mu.Unlock()
	var cut *storage.Cut
	var err error
	switch {
	case r.Held != nil:
		if err := s.readopt(p, r); err != nil {
			return storage.Opened{}, err
		}
		o, err := p.opened()
		if err == nil {
			err = o.Lease.File.Close() // the core has it
			o.Lease.File = nil
		}
		return o, err
	case len(p.segments) == 0:
		err = s.begin(p, r)
	case p.name != r.Partition:
		err = fmt.Errorf("%w: the name is that of topic id %s", storage.ErrDataMissing, p.name.TopicID)
	case p.held && p.instance == r.Instance:
		err = storage.ErrLeaseHeld
	default:
		cut, err = s.resume(p, r)
	}
	if err != nil {
		return storage.Opened{}, err
	}
	p.instance, p.held, p.size, p.rolled = r.Instance, true, r.SegmentBytes, rolled{}
	p.lease++
	o, err := p.opened()
	o.Cut = cut
	return o, err
}

// part returns the partition of that name, locked, and makes it where it is not known yet.
func (s *Store) part(name storage.Partition) *part {
	for {
		s.mu.Lock()
		p := s.parts[name.String()]
		if p == nil {
			p = &part{name: name}
			s.parts[name.String()] = p
		}
		s.mu.Unlock()
		p.mu.Lock()
		if !p.gone {
			return p
		}
		p.mu.Unlock()
	}
}

// begin opens a partition of which there is nothing: empty, at its floor.
func (s *Store) begin(p *part, r storage.OpenRequest) error {
	floor, err := s.floors.read(r.Partition)
	if r.Create && errors.Is(err, storage.ErrDataMissing) {
		floor, err = 0, nil
	}
	if err != nil {
		return err
	}
	p.name, p.floor = r.Partition, floor
	if err := s.add(p, floor, r.SegmentBytes); err != nil {
		return err
	}
	p.start = floor
	return nil
}

// add gives p an empty segment as its active one. On an error p is as it was.
func (s *Store) add(p *part, base record.Offset, size int64) error {
	seg := &segment{base: base, next: base, maxTimestamp: -1}
	if err := s.charge(seg, size, false); err != nil {
		return err
	}
	err := s.cover(p, base)
	if err == nil {
		seg.file, err = newFile(p.name.String())
	}
	if err != nil {
		return errors.Join(err, s.charge(seg, 0, true))
	}
	p.segments = append(p.segments, seg)
	return nil
}

// resume opens what this process holds: the core before has given it back, or is gone.
func (s *Store) resume(p *part, r storage.OpenRequest) (*storage.Cut, error) {
	var lost int64
	for r.Ceiling >= 0 && len(p.segments) > 1 && p.active().base > r.Ceiling {
		lost += p.active().size
		s.pop(p)
	}
	a := p.active()
	end, bad := a.sound(r.Ceiling)
	info, err := a.file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size > end.position { // a new file, as readers may have the old one
		file, err := copyFile(p.name.String(), a.file, end.position)
		if err != nil {
			return nil, err
		}
		_ = a.file.Close()
		a.file = file
	}
	a.next, a.size, a.maxTimestamp = end.offset, end.position, end.maxTimestamp
	if err := errors.Join(s.charge(a, max(r.SegmentBytes, a.size), true), s.cover(p, a.base)); err != nil {
		return nil, err
	}
	lost += info.Size - end.position
	dirty := r.Ceiling > end.offset
	if lost == 0 && !dirty {
		return nil, nil
	}
	reason := "the log ends below what the core saw confirmed"
	if bad != nil {
		reason = bad.Error()
	}
	return &storage.Cut{Offset: end.offset, Bytes: lost, Reason: reason, Dirty: dirty}, nil
}

// pop drops the active segment; the one before it is active then.
func (s *Store) pop(p *part) {
	last := p.active()
	_ = s.charge(last, 0, true)
	_ = last.file.Close() // who reads from it has it open
	p.segments = p.segments[:len(p.segments)-1]
}

// readopt takes over what the core holds. Where this process holds the log already, it compares.
func (s *Store) readopt(p *part, r storage.OpenRequest) error {
	mismatch := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", storage.ErrHeldMismatch, fmt.Sprintf(format, args...))
	}
	h := r.Held
	if len(p.segments) > 0 {
		a := p.active()
		if p.name != r.Partition || p.instance != r.Instance || p.lease != h.Lease || a.base != h.Base {
			return mismatch("lease %d of segment %d, here it is %d of %d", h.Lease, h.Base, p.lease, a.base)
		}
		p.lease++
		return nil
	}
	floor, err := s.floors.read(r.Partition)
	if errors.Is(err, storage.ErrDataMissing) {
		return mismatch("%v", err)
	}
	if err != nil {
		return err
	}
	if h.File == nil {
		return mismatch("the active segment did not come with it")
	}
	if h.LogStart < 0 || h.LogStart > h.Next || h.Next < h.Base || h.Next > h.Base+segmentRecords {
		return mismatch("[%d, %d) from log start %d", h.Base, h.Next, h.LogStart)
	}
	segments, err := s.take(h)
	if err != nil {
		for _, seg := range segments {
			_ = seg.file.Close()
		}
		return mismatch("%v", err)
	}
	p.name, p.floor = r.Partition, floor
	if err := s.cover(p, h.Base); err != nil {
		for _, seg := range segments {
			_ = seg.file.Close()
		}
		return err
	}
	for i, seg := range segments { // the memory is in use, whatever the cap says
		bytes := seg.size
		if i == len(segments)-1 {
			bytes = max(bytes, r.SegmentBytes)
		}
		_ = s.charge(seg, bytes, true)
	}
	p.segments, p.start, p.size = segments, h.LogStart, r.SegmentBytes
	p.instance, p.held, p.lease, p.rolled = r.Instance, true, h.Lease+1, rolled{}
	return nil
}

// take reopens what was handed back and compares it with what was said of it. On an error it returns what is open.
func (s *Store) take(h *storage.Held) ([]*segment, error) {
	var segments []*segment
	now := s.now() // a lost stamp means now
	for i, held := range h.Sealed {
		if i > 0 && held.Base != h.Sealed[i-1].Next || held.Next <= held.Base {
			return segments, fmt.Errorf("sealed segment [%d, %d) does not follow", held.Base, held.Next)
		}
		seg := &segment{base: held.Base, next: held.Next, size: held.Size, maxTimestamp: held.MaxTimestamp, sealed: now}
		if err := seg.reopen(held.File); err != nil {
			return segments, err
		}
		segments = append(segments, seg)
	}
	if n := len(h.Sealed); n > 0 && h.Sealed[n-1].Next != h.Base {
		return segments, fmt.Errorf("sealed segments end at %d, the active one begins at %d", h.Sealed[n-1].Next, h.Base)
	}
	a := &segment{base: h.Base, next: h.Next, size: h.Position, maxTimestamp: h.MaxTimestamp}
	if err := a.reopen(h.File); err != nil {
		return segments, err
	}
	segments = append(segments, a)
	info, err := a.file.Stat()
	if err == nil && (info.Dev != h.Dev || info.Ino != h.Ino) {
		err = fmt.Errorf("active segment is inode %d:%d, held is %d:%d", info.Dev, info.Ino, h.Dev, h.Ino)
	}
	return segments, err
}

// reopen gives the segment a description of its own of a file that was handed back, and looks whether it can be it.
func (seg *segment) reopen(f storage.File) error {
	if f == nil {
		return fmt.Errorf("segment %d did not come with it", seg.base)
	}
	file, err := vfs.OS().Reopen(vfs.FromFd(int(f.Fd()), "handed back"))
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && (!info.Regular || info.Size < seg.size) {
		err = fmt.Errorf("segment %d is to have %d bytes, the file has %d", seg.base, seg.size, info.Size)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	seg.file = file
	return nil
}
