package zookeeper

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

const (
	// packetBytesMax is what a commit may fill of ZooKeeper's 1 MiB, by our estimate.
	packetBytesMax = 960 << 10
	// inlineBytesMax bounds the values that a change carries, all and one: what is kept of changes has to fit into
	// ZooKeeper's memory.
	inlineBytesMax = 128 << 10
	inlineValueMax = 4 << 10
	// opBytes is what an operation costs beside path, data and who may read it.
	opBytes = 64
	// eventBytes is what an event costs in a change beside key and value.
	eventBytes = 64
)

// plan is a transaction as ZooKeeper takes it.
type plan struct {
	ops []any
	// sessions is where the operations begin that check sessions, keys where those begin that touch keys.
	sessions, keys int
	bytes          int
	events         []happen
}

// isNothing reports that the transaction has no effect.
func (p *plan) isNothing() bool { return len(p.events) == 0 }

// conflict is the key that is not in v as t and owners demand; empty when there is none.
func conflict(t metadata.Txn, v view, owners map[string]metadata.SessionID) string {
	for key, session := range owners {
		if v.entries[key].Session != session {
			return key
		}
	}
	for _, g := range t.Guards {
		if v.entries[g.Key].Version != g.Version { // no entry has version 0
			return g.Key
		}
	}
	for _, p := range t.Puts {
		if e, ok := v.entries[p.Key]; ok && e.Session != p.Session {
			return p.Key
		}
	}
	return ""
}

// exact reports whether t is only right as of v: it writes an existing key of a session, whose owner no version tells.
func exact(t metadata.Txn, v view) bool {
	return slices.ContainsFunc(t.Puts, func(p metadata.Put) bool {
		_, exists := v.entries[p.Key]
		return exists && p.Session != metadata.NoSession
	})
}

// makePlan makes the operations of t for keys as they are in v, where nothing conflicts. They fail, all of them, when a
// key is no longer so. With exactly, they fail when there was any commit since.
func (s *Store) makePlan(id string, t metadata.Txn, v view, exactly bool) (*plan, error) {
	logVersion := int32(-1)
	if exactly {
		logVersion = int32(v.at.seq)
	}
	p := &plan{}
	s.add(p, &zk.SetDataRequest{Path: s.layout.generation(v.at.gen), Version: logVersion})
	s.add(p, &zk.CheckVersionRequest{Path: s.layout.log(), Version: int32(v.at.gen)})
	p.sessions = len(p.ops)
	for _, session := range sessionsOf(t) {
		s.add(p, &zk.CheckVersionRequest{Path: s.layout.alive(session), Version: -1})
	}
	p.keys = len(p.ops)
	written := make(map[string]bool, len(t.Puts)+len(t.Deletes))
	for _, put := range t.Puts {
		written[put.Key] = true
		s.planPut(p, put, v)
	}
	for _, key := range t.Deletes {
		written[key] = true
		s.planDelete(p, key, v)
	}
	for _, g := range t.Guards {
		if !written[g.Key] {
			s.planGuard(p, g)
		}
	}
	if p.isNothing() {
		return p, nil
	}
	slices.SortFunc(p.events, func(a, b happen) int { return cmp.Compare(a.Key, b.Key) })
	raw, err := json.Marshal(change{ID: id, Events: p.inline(t)})
	if err != nil {
		return nil, fmt.Errorf("encode a change: %w", err)
	}
	s.add(p, s.createChange(v.at.gen, raw))
	return p, nil
}

// createChange makes the operation that puts a change into the log.
func (s *Store) createChange(gen int64, raw []byte) *zk.CreateRequest {
	return &zk.CreateRequest{Path: s.layout.changePrefix(gen), Data: raw, Acl: s.acl, Flags: zk.FlagSequence}
}

func sessionsOf(t metadata.Txn) []metadata.SessionID {
	var all []metadata.SessionID
	for _, p := range t.Puts {
		if p.Session != metadata.NoSession && !slices.Contains(all, p.Session) {
			all = append(all, p.Session)
		}
	}
	return all
}

func (s *Store) planPut(p *plan, put metadata.Put, v view) {
	path, data := s.layout.key(put.Key), encodeValue(put)
	e, exists := v.entries[put.Key]
	if exists {
		s.add(p, &zk.SetDataRequest{Path: path, Data: data, Version: int32(e.Version - 1)})
	} else {
		s.add(p, s.create(path, data))
	}
	p.events = append(p.events, happen{Key: put.Key, Version: e.Version + 1, Session: put.Session})
}

func (s *Store) planDelete(p *plan, key string, v view) {
	e, exists := v.entries[key]
	if !exists {
		s.planAbsent(p, key)
		return
	}
	s.add(p, &zk.DeleteRequest{Path: s.layout.key(key), Version: int32(e.Version - 1)})
	p.events = append(p.events, happen{Key: key, Version: e.Version, Deleted: true})
}

func (s *Store) planGuard(p *plan, g metadata.Guard) {
	if g.Version == metadata.Absent {
		s.planAbsent(p, g.Key)
		return
	}
	s.add(p, &zk.CheckVersionRequest{Path: s.layout.key(g.Key), Version: int32(g.Version - 1)})
}

// planAbsent checks that a key is not there: ZooKeeper has no check for that, but making it and taking it back is one.
func (s *Store) planAbsent(p *plan, key string) {
	path := s.layout.key(key)
	s.add(p, s.create(path, nil))
	s.add(p, &zk.DeleteRequest{Path: path, Version: -1})
}

func (s *Store) add(p *plan, op any) {
	p.ops = append(p.ops, op)
	p.bytes += opBytes
	switch op := op.(type) {
	case *zk.CreateRequest:
		p.bytes += len(op.Path) + len(op.Data) + len(s.opt.Digest) + 2*opBytes // the digest is hashed and has a frame
	case *zk.SetDataRequest:
		p.bytes += len(op.Path) + len(op.Data)
	case *zk.CheckVersionRequest:
		p.bytes += len(op.Path)
	case *zk.DeleteRequest:
		p.bytes += len(op.Path)
	}
}

// inline returns the events with as many values as the change may carry.
func (p *plan) inline(t metadata.Txn) []happen {
	values := make(map[string][]byte, len(t.Puts))
	for _, put := range t.Puts {
		values[put.Key] = put.Value
	}
	for _, h := range p.events {
		p.bytes += eventBytes + len(h.Key)
	}
	carried := 0
	for i := range p.events {
		h := &p.events[i]
		value := values[h.Key]
		if h.Deleted || len(value) == 0 {
			continue
		}
		encoded := (len(value) + 2) / 3 * 4
		if len(value) > inlineValueMax || carried+len(value) > inlineBytesMax || p.bytes+encoded > packetBytesMax {
			h.Elsewhere = true
			continue
		}
		h.Value = value
		carried += len(value)
		p.bytes += encoded
	}
	return p.events
}
