package metadatarpc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

func entryToPB(e metadata.Entry) *metadatapb.Entry {
	return &metadatapb.Entry{
		Key: e.Key, Value: e.Value, Version: int64(e.Version), Revision: int64(e.Revision), Session: uint64(e.Session),
	}
}

func entryFromPB(e *metadatapb.Entry) metadata.Entry {
	return metadata.Entry{
		Key: e.GetKey(), Value: e.GetValue(),
		Version: metadata.Version(e.GetVersion()), Revision: metadata.Revision(e.GetRevision()),
		Session: metadata.SessionID(e.GetSession()),
	}
}

func txnToPB(t metadata.Txn) *metadatapb.CommitRequest {
	r := &metadatapb.CommitRequest{Deletes: t.Deletes}
	for _, g := range t.Guards {
		r.Guards = append(r.Guards, &metadatapb.Guard{Key: g.Key, Version: int64(g.Version)})
	}
	for _, p := range t.Puts {
		r.Puts = append(r.Puts, &metadatapb.Put{Key: p.Key, Value: p.Value, Session: uint64(p.Session)})
	}
	return r
}

func txnFromPB(r *metadatapb.CommitRequest) metadata.Txn {
	t := metadata.Txn{Deletes: r.GetDeletes()}
	for _, g := range r.GetGuards() {
		t.Guards = append(t.Guards, metadata.Guard{Key: g.GetKey(), Version: metadata.Version(g.GetVersion())})
	}
	for _, p := range r.GetPuts() {
		t.Puts = append(t.Puts, metadata.Put{Key: p.GetKey(), Value: p.GetValue(), Session: metadata.SessionID(p.GetSession())})
	}
	return t
}

func checkEntry(e metadata.Entry) error {
	if err := metadata.CheckKey(e.Key); err != nil {
		return err
	}
	switch {
	case e.Version < 1:
		return fmt.Errorf("%s has version %d", e.Key, e.Version)
	case e.Revision < 1:
		return fmt.Errorf("%s has revision %d", e.Key, e.Revision)
	case len(e.Value) > metadata.ValueBytesMax:
		return fmt.Errorf("the value of %s has %d bytes", e.Key, len(e.Value))
	}
	return nil
}

// snapAppend checks a piece of a List against what came before, and adds it.
func snapAppend(snap *metadata.Snapshot, prefix string, resp *metadatapb.ListResponse) error {
	rev := metadata.Revision(resp.GetRevision())
	if rev < 0 {
		return fmt.Errorf("revision %d", rev)
	}
	if snap.Revision >= 0 && rev != snap.Revision {
		return errors.New("its pieces are of different revisions")
	}
	snap.Revision = rev
	for _, pb := range resp.GetEntries() {
		e := entryFromPB(pb)
		if err := checkEntry(e); err != nil {
			return err
		}
		if !strings.HasPrefix(e.Key, prefix) {
			return fmt.Errorf("%s is not below the prefix", e.Key)
		}
		if e.Revision > rev {
			return fmt.Errorf("%s is newer than the snapshot", e.Key)
		}
		if n := len(snap.Entries); n > 0 && e.Key <= snap.Entries[n-1].Key {
			return fmt.Errorf("%s is out of order", e.Key)
		}
		snap.Entries = append(snap.Entries, e)
	}
	return nil
}
