package zookeeper

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// What is below the chroot:
//
//	/format            {"format":1,"turn":…}, made last: who sees it sees the rest
//	/log               the number of the current generation; its node's version is that number, too
//	/log/<generation>  empty; its version is the number of commits in this generation
//	/log/<generation>/c-<commit, ten digits>   what the commit changed; only the last ones are kept
//	/keys/<bucket>/<key, with : for />         format uint8 = 1 | session uint64, big-endian | value
//	/live/<session, 16 hex digits>             ephemeral: the session lives
//
// A commit is one multi: it sets /log/<generation>, which numbers it; makes its change, whose sequence number is then the
// same; and creates, sets, deletes and checks keys. Whoever follows the changes has every state of every key, in order.
//
// A key is a node in one of 256 buckets and not a path of nodes, so that a key may lie below another, no node is made
// for what is no key, and no list of children outgrows a packet. A version of ours is the node's plus one.
const (
	formatVersion = 1
	// turnDefault is how many commits a generation has: sequence numbers and versions have 31 bits.
	turnDefault = 1 << 30
	bucketCount = 256

	valueFormat    = 1
	valueHeadBytes = 9
)

// layout knows where everything is.
type layout struct{ root string } // "" or "/a/b"

func (y layout) format() string { return y.root + "/format" }
func (y layout) log() string    { return y.root + "/log" }
func (y layout) live() string   { return y.root + "/live" }

func (y layout) generation(gen int64) string { return y.log() + "/" + strconv.FormatInt(gen, 10) }

// changePrefix is what ZooKeeper appends a sequence number to.
func (y layout) changePrefix(gen int64) string { return y.generation(gen) + "/c-" }

func (y layout) change(p place) string { return fmt.Sprintf("%s%010d", y.changePrefix(p.gen), p.seq) }

// changeNumber is the sequence number in a change's name.
func changeNumber(name string) (int64, bool) {
	digits, ok := strings.CutPrefix(name, "c-")
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, ok && err == nil
}

func (y layout) bucket(n int) string { return fmt.Sprintf("%s/keys/%02x", y.root, n) }

func (y layout) key(key string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return y.bucket(int(h.Sum32()%bucketCount)) + "/" + strings.ReplaceAll(key[1:], "/", ":")
}

// keyOf is the key that a child of a bucket stands for.
func keyOf(child string) string { return "/" + strings.ReplaceAll(child, ":", "/") }

func (y layout) alive(id metadata.SessionID) string {
	return fmt.Sprintf("%s/%016x", y.live(), uint64(id))
}

// sessionOf is the session that a child of live stands for.
func sessionOf(child string) (metadata.SessionID, bool) {
	n, err := strconv.ParseUint(child, 16, 64)
	return metadata.SessionID(n), err == nil
}

// parameters are fixed when the layout is made, and the same for every broker.
type parameters struct {
	Format int   `json:"format"`
	Turn   int64 `json:"turn"` // commits in a generation
}

// place is a place in the log: that many commits of a generation, and all before it.
type place struct{ gen, seq int64 }

func (p place) before(q place) bool { return p.gen < q.gen || p.gen == q.gen && p.seq < q.seq }

// change is what one commit did.
type change struct {
	ID     string   `json:"id"` // the commit's, random
	Events []happen `json:"events,omitempty"`
	Turn   bool     `json:"turn,omitempty"` // the log goes on in the next generation
}

// happen is what happened to one key.
type happen struct {
	Key       string             `json:"k"`
	Version   metadata.Version   `json:"v"`
	Session   metadata.SessionID `json:"s,omitempty"`
	Deleted   bool               `json:"d,omitempty"`
	Value     []byte             `json:"b,omitempty"`
	Elsewhere bool               `json:"e,omitempty"` // the value is in the key's node, as long as nothing newer is
}

func decodeChange(raw []byte) (change, error) {
	var c change
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%w: a change: %w", ErrFormat, err)
	}
	for _, h := range c.Events {
		if err := metadata.CheckKey(h.Key); err != nil || h.Version < 1 {
			return c, fmt.Errorf("%w: a change of %.80q to version %d", ErrFormat, h.Key, h.Version)
		}
	}
	return c, nil
}

func encodeValue(p metadata.Put) []byte {
	raw := make([]byte, 0, valueHeadBytes+len(p.Value))
	raw = append(raw, valueFormat)
	raw = binary.BigEndian.AppendUint64(raw, uint64(p.Session))
	return append(raw, p.Value...)
}

func decodeEntry(key string, raw []byte, stat *zk.Stat) (metadata.Entry, error) {
	if len(raw) < valueHeadBytes || raw[0] != valueFormat || stat.Version < 0 {
		return metadata.Entry{}, fmt.Errorf("%w: the node of %s", ErrFormat, key)
	}
	return metadata.Entry{
		Key: key, Value: raw[valueHeadBytes:],
		Version: metadata.Version(stat.Version) + 1, Revision: metadata.Revision(stat.Mzxid),
		Session: metadata.SessionID(binary.BigEndian.Uint64(raw[1:])),
	}, nil
}
