// Package jetstream is what a JetStream client expects from a publish: the acknowledgement or the error as JSON, and the
// headers that ask for more than to append.
//
// It is pure and writes the bytes by hand: an acknowledgement is made for each record.
package jetstream

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// seqOffsetBits is where a sequence number's partition begins. With 2,048 partitions it stays below 2^53, which a
// JSON number still holds exactly.
const seqOffsetBits = 42

// Ack is what became of a record.
type Ack struct {
	Topic      string
	Partition  partition.ID
	Offset     record.Offset
	Durability string
}

// AppendStream appends the stream's name of a topic: a stream's name has no dots.
func AppendStream(dst []byte, topic string) []byte {
	for i := range len(topic) {
		c := topic[i]
		if c == '.' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// Sequence is a record's one number in its topic, from 1 on in partition 0.
func Sequence(p partition.ID, off record.Offset) uint64 {
	return uint64(p)<<seqOffsetBits | uint64(off+1)
}

// AppendAck appends the acknowledgement of a record. Topic and Durability hold nothing that JSON would escape: they are a
// legal topic name and a word.
func AppendAck(dst []byte, a Ack) []byte {
	dst = append(dst, `{"stream":"`...)
	dst = AppendStream(dst, a.Topic)
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendUint(dst, Sequence(a.Partition, a.Offset), 10)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(a.Partition), 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, int64(a.Offset), 10)
	dst = append(dst, `,"durability":"`...)
	dst = append(dst, a.Durability...)
	return append(dst, '"', '}')
}

// Refusal is an error with the number that JetStream gives it.
type Refusal struct {
	HTTP    int
	ErrCode int
	Err     *errcode.Error
}

// Refuse gives an error JetStream's numbers.
func Refuse(e *errcode.Error) Refusal {
	row, ok := errcode.Lookup(e.Code)
	if !ok {
		return Refusal{HTTP: 500, ErrCode: codeFailed, Err: e}
	}
	return Refusal{HTTP: row.HTTP, ErrCode: row.JetStream, Err: e}
}

// AppendError appends a refusal: nothing was written.
func AppendError(dst []byte, r Refusal) []byte {
	type fault struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	}
	text, _ := json.Marshal(struct { // cannot fail: numbers and a string
		Error fault `json:"error"`
	}{fault{r.HTTP, r.ErrCode, string(r.Err.Code) + ": " + r.Err.Text()}})
	return append(dst, text...)
}

// JetStream's own numbers for what a header asks for and a stream does not allow.
const (
	codeBadRequest       = 10003
	codeFailed           = 10077
	codeTTLDisabled      = 10166
	codeCounterDisabled  = 10168
	codeBatchDisabled    = 10174
	codeScheduleDisabled = 10188
)

// headerPrefix begins every header that JetStream reads.
var headerPrefix = []byte("Nats-")

// asking are the headers that change what a publish does; a name stands for itself, one that ends in * for what begins
// so. Nats-Msg-Id is not among them: it is stored.
var asking = []struct {
	name    string
	errCode int
	what    string
}{
	{"Nats-Expected-*", codeBadRequest, "expectations of what was published before are"},
	{"Nats-TTL", codeTTLDisabled, "a time to live for each record is"},
	{"Nats-Rollup", codeBadRequest, "rollup is"},
	{"Nats-Batch-*", codeBatchDisabled, "atomic batches are"},
	{"Nats-Schedule*", codeScheduleDisabled, "schedules are"},
	{"Nats-Incr", codeCounterDisabled, "counters are"},
}

// CheckHeaders refuses a record whose headers ask JetStream for what this server does not do: to store it as if they
// did not stand there would be worse. It allocates only for a refusal.
func CheckHeaders(r *record.Record) (Refusal, bool) {
	for i := range r.Headers {
		name := r.Headers[i].Key
		if !bytes.HasPrefix(name, headerPrefix) {
			continue
		}
		for _, a := range asking {
			if !means(a.name, name) {
				continue
			}
			e := errcode.New(errcode.NotSupported, a.what+" not offered yet", "publish without the header "+string(name))
			return Refusal{HTTP: 400, ErrCode: a.errCode, Err: e}, true
		}
	}
	return Refusal{}, false
}

func means(pattern string, name []byte) bool {
	if n := len(pattern) - 1; pattern[n] == '*' {
		return len(name) >= n && string(name[:n]) == pattern[:n]
	}
	return string(name) == pattern
}
