package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
)

func (a *app) logDumpCommand() *cobra.Command {
	var records bool
	cmd := &cobra.Command{
		Use:   "dump DIR [--records]",
		Short: "Print the batches of a partition's directory",
		Long: "Print what a partition's directory holds: each batch, and with --records each record, unpacked.\n" +
			"With --json it is one object a line. A damaged batch is printed as such, and makes the command fail.",
		Args: argCount(1, 1), DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&records, "records", false, "print the records too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.started = true
		d, err := listLog(args[0])
		if err != nil {
			return err
		}
		p := &dumper{app: a, dir: d, records: records}
		defer p.unpack.Close()
		return p.dump(cmd.Context())
	}
	return cmd
}

// dumper prints a partition's directory. It holds one batch, and only a sound one.
type dumper struct {
	*app
	dir     *logDir
	records bool
	damaged int
	batch   []byte
	unpack  codec.Reader
}

func (p *dumper) dump(ctx context.Context) error {
	for _, g := range p.dir.segments {
		if err := p.segment(ctx, g); err != nil {
			return err
		}
	}
	if p.damaged > 0 {
		return fmt.Errorf("%s: damaged batches: %d; trunkline log verify tells all faults", p.dir.path, p.damaged)
	}
	return nil
}

func (p *dumper) segment(ctx context.Context, g logSegment) error {
	f, in, err := p.dir.open(g)
	if err != nil {
		return err
	}
	defer f.Close()
	name := kafkalog.SegmentName(g.base)
	if !p.json {
		fmt.Fprintf(p.out, "%s bytes %d\n", name, g.size)
	}
	w := kafkalog.NewWalker(in, g.size, math.MaxInt64)
	var b kafkalog.Walked
	for w.Next(&b) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.printBatch(name, &b); err != nil {
			return err
		}
		if p.records && b.Err == nil {
			if err := p.printRecords(name, f, &b); err != nil {
				return err
			}
		}
	}
	if err := w.Err(); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// batchJSON is a batch as --json prints it.
type batchJSON struct {
	File          string  `json:"file"`
	Position      int64   `json:"position"`
	Base          *int64  `json:"base,omitempty"`
	Last          *int64  `json:"last,omitempty"`
	Records       *int32  `json:"records,omitempty"`
	Bytes         int64   `json:"bytes,omitempty"`
	Epoch         *int32  `json:"epoch,omitempty"`
	Codec         string  `json:"codec,omitempty"`
	CRC           string  `json:"crc,omitempty"`
	BaseTimestamp *string `json:"base_timestamp,omitempty"`
	MaxTimestamp  *string `json:"max_timestamp,omitempty"`
	Timestamps    string  `json:"timestamps,omitempty"` // create or append, as in a topic's settings
	Producer      *int64  `json:"producer_id,omitempty"`
	ProducerEpoch *int16  `json:"producer_epoch,omitempty"`
	Sequence      *int32  `json:"base_sequence,omitempty"`
	Transactional bool    `json:"transactional,omitempty"`
	Control       bool    `json:"control,omitempty"`
	Error         string  `json:"error,omitempty"`
}

// printBatch prints what a batch's header says, which is nothing where it does not lead on.
func (p *dumper) printBatch(file string, b *kafkalog.Walked) error {
	if b.Err != nil {
		p.damaged++
	}
	if p.json {
		return p.printJSON(describe(file, b))
	}
	fmt.Fprintf(p.out, "position %d", b.Position)
	if b.Known() {
		h := b.Header
		fmt.Fprintf(p.out, " offsets %d-%d records %d bytes %d epoch %d codec %s time %s", h.BaseOffset(), h.LastOffset(), h.Count(), b.Size,
			h.Epoch(), codecName(h.Codec()), timeText(h.MaxTimestamp()))
		if h.AppendTime() {
			fmt.Fprint(p.out, " append-time")
		}
		if h.ProducerID() >= 0 {
			fmt.Fprintf(p.out, " producer %d/%d@%d", h.ProducerID(), h.ProducerEpoch(), h.BaseSequence())
		}
		if h.Transactional() {
			fmt.Fprint(p.out, " transactional")
		}
		if h.Control() {
			fmt.Fprint(p.out, " control")
		}
	}
	if b.Err != nil {
		fmt.Fprintf(p.out, " DAMAGED: %v", b.Err)
	}
	return p.out.WriteByte('\n')
}

func describe(file string, b *kafkalog.Walked) batchJSON {
	out := batchJSON{File: file, Position: b.Position, Bytes: b.Size}
	if b.Err != nil {
		out.Error = b.Err.Error()
	}
	if !b.Known() {
		return out
	}
	h := b.Header
	out.Base, out.Last = new(int64(h.BaseOffset())), new(int64(h.LastOffset()))
	out.Records, out.Epoch = new(h.Count()), new(int32(h.Epoch()))
	out.Codec, out.CRC = codecName(h.Codec()), fmt.Sprintf("%08x", h.CRC())
	out.BaseTimestamp, out.MaxTimestamp = new(timeText(h.BaseTimestamp())), new(timeText(h.MaxTimestamp()))
	out.Timestamps = "create"
	if h.AppendTime() {
		out.Timestamps = "append"
	}
	if h.ProducerID() >= 0 {
		out.Producer, out.ProducerEpoch, out.Sequence = new(h.ProducerID()), new(h.ProducerEpoch()), new(h.BaseSequence())
	}
	out.Transactional, out.Control = h.Transactional(), h.Control()
	return out
}

// printRecords reads a sound batch whole and prints its records.
func (p *dumper) printRecords(file string, f io.ReaderAt, b *kafkalog.Walked) error {
	if int64(cap(p.batch)) < b.Size {
		p.batch = make([]byte, b.Size)
	}
	p.batch = p.batch[:b.Size]
	if _, err := f.ReadAt(p.batch, b.Position); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	// The bytes lie there already and nobody else waits: a record may be as large as its batch.
	most := min(codec.BatchLimit(len(p.batch)), math.MaxInt32)
	p.unpack.Reset(p.batch, int(most))
	var r record.Record
	for {
		o, ok := p.unpack.Next(&r)
		if !ok {
			break
		}
		if err := p.printRecord(o, &r); err != nil {
			return err
		}
	}
	if err := p.unpack.Err(); err != nil {
		p.damaged++
		if p.json {
			return p.printJSON(batchJSON{File: file, Position: b.Position, Error: err.Error()})
		}
		fmt.Fprintf(p.out, "  DAMAGED: %v\n", err)
	}
	return nil
}

func (p *dumper) printRecord(o record.Offset, r *record.Record) error {
	if p.json {
		out := trunkline.Record{Topic: p.dir.topic, Partition: p.dir.partition, Offset: o, Timestamp: time.UnixMilli(r.Timestamp), Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			out.Headers = append(out.Headers, headerText(h))
		}
		return p.printJSON(&out)
	}
	fmt.Fprintf(p.out, "  offset %d time %s key %s value %s", o, timeText(r.Timestamp), quoted(r.Key), quoted(r.Value))
	for _, h := range r.Headers {
		fmt.Fprintf(p.out, " %q: %s", h.Key, quoted(h.Value))
	}
	return p.out.WriteByte('\n')
}

// headerText is a header as the protocol shows it: what is not text goes as base64 under a name that says so.
func headerText(h record.Header) trunkline.Header {
	if utf8.Valid(h.Value) && !bytes.ContainsAny(h.Value, "\r\n") {
		return trunkline.Header{Name: string(h.Key), Value: h.Value}
	}
	return trunkline.Header{Name: string(h.Key) + "-Base64", Value: base64.StdEncoding.AppendEncode(nil, h.Value)}
}

func quoted(b []byte) string {
	if b == nil {
		return "null"
	}
	return strconv.Quote(string(b))
}

// timeText is a time of Kafka's; -1 is its mark of none.
func timeText(ms int64) string {
	if ms == -1 {
		return "none"
	}
	return time.UnixMilli(ms).UTC().Format(line.TimeLayout)
}

func codecName(c record.Codec) string {
	switch c {
	case record.CodecNone:
		return "none"
	case record.CodecGzip:
		return "gzip"
	case record.CodecSnappy:
		return "snappy"
	case record.CodecLZ4:
		return "lz4"
	case record.CodecZstd:
		return "zstd"
	}
	return strconv.Itoa(int(c))
}
