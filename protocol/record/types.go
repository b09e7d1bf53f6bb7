// Package record is Kafka's record batch, magic 2, byte for byte: a builder that gathers records into one batch
// without an allocation per record, and a view that checks a batch and walks its records. It does no I/O.
//
// What a batch looks like is drawn above Batch; the source is Kafka's DefaultRecordBatch and DefaultRecord.
package record

// Offset is a record's place in its partition. The first is 0.
type Offset int64

// Epoch is a leader epoch; -1 where none is known.
type Epoch int32

// Header is one header of a record. A nil Value is Kafka's null.
type Header struct {
	Key   []byte
	Value []byte
}

// Record is one record, without the place the log gives it. A nil Key or Value is null, which is not the same as empty.
type Record struct {
	Timestamp int64 // milliseconds since the Unix epoch
	Key       []byte
	Value     []byte
	Headers   []Header
}
