package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/clients/cli/measure"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// pubFlags are the flags of pub as they were given.
type pubFlags struct {
	key, keyBase64 string
	headers        []string
	null           bool
	file           string
	lines, records bool
	delimiter      string
	keepGoing      bool
	template       bool
	count          int
	acks           string
}

func (a *app) pubCommand() *cobra.Command {
	var f pubFlags
	cmd := &cobra.Command{
		Use:   "pub ADDRESS [BODY] [--key K] [-H name:value]… [--acks 0|1|all] [--count N] | pub ADDRESS --lines [--file FILE]",
		Short: "Publish a record, or every line of a file as one",
		Long: "Publish BODY, a file, or all of standard input as one record, and print where it went; where the\n" +
			"input is empty, the record is.\n" +
			"With --lines every line is a record: it ends at LF, a CR is data, an empty line is an empty\n" +
			"record, and a last line without LF counts. With --records every line is a record in the JSON\n" +
			"that sub and get print with --json: bytes as key_base64 and value_base64, null as null.\n\n" +
			"With --count, BODY, key and headers are templates: {{.Count}} is the record's number from 1,\n" +
			"{{.Time}} the time, {{.Unix}} the time in seconds, {{random 8}} that many letters and digits.\n\n" +
			"With --acks all, the default, the answer comes when the record is as safe as its topic asks for; the\n" +
			"word behind its address says how safe that is. With --acks 1 the partition's leader alone is waited\n" +
			"for, with one broker the same. With --acks 0 nothing is: the answer is none, says that the server has\n" +
			"read the record, and a failure to store it is not told.",
		Example: "  trunkline pub orders 'two coffees' --key anna -H colour:green\n" +
			"  trunkline pub orders --lines --file orders.txt\n" +
			"  trunkline pub orders 'order {{.Count}}' --key 'customer-{{random 2}}' --count 1000\n" +
			"  trunkline sub orders@earliest --exit --json | trunkline pub copy --records",
		Args:                  argCount(1, 2),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.completeTopics,
	}
	cmd.Flags().StringVar(&f.key, "key", "", "the record's `KEY`")
	cmd.Flags().StringVar(&f.keyBase64, "key-base64", "", "the record's key, any bytes, in `BASE64`")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "a header, `name:value`; may repeat")
	cmd.Flags().BoolVar(&f.null, "null", false, "publish a record without a value: null, as Kafka's tombstones are")
	cmd.Flags().StringVar(&f.file, "file", "", "read `FILE` instead of standard input")
	cmd.Flags().BoolVar(&f.lines, "lines", false, "publish each line of the input")
	cmd.Flags().BoolVar(&f.records, "records", false, "publish each line of the input, which is a record in JSON")
	cmd.Flags().StringVar(&f.delimiter, "key-delimiter", "", "with --lines: what is in front of the first `TEXT` of a line is its key")
	cmd.Flags().BoolVar(&f.keepGoing, "keep-going", false, "with --lines or --records: go on when a line is refused; each is named, and the exit code is 1")
	cmd.Flags().IntVar(&f.count, "count", 1, "publish the record `N` times")
	cmd.Flags().StringVar(&f.acks, "acks", "all", "`WHAT` is waited for: 0, nothing; 1, the leader; all, as many as the topic asks for")
	cmd.Flags().BoolVar(&f.template, "template", false, "BODY, key and headers are templates; default where --count is given")
	var m trunkline.Message
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if !cmd.Flags().Changed("template") {
			f.template = cmd.Flags().Changed("count")
		}
		if err := f.check(cmd, len(args)); err != nil {
			return err
		}
		if m, err = f.message(cmd); err != nil {
			return err
		}
		_, err = checkAddress(args[0], (*address.Address).ForPublish)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		in, err := a.input(ctx, f.file)
		if err != nil {
			return err
		}
		defer in.Close()
		by, end, err := f.publisher(ctx, c, args[0])
		if err != nil {
			return err
		}
		defer end()
		if f.lines || f.records {
			return a.publishLines(ctx, by, args[0], newLineSource(in, c.Info().MaxPayload, &f, m), f.keepGoing)
		}
		switch {
		case f.null:
		case len(args) == 2:
			m.Value = []byte(args[1])
		default:
			if m.Value, err = readBody(in, c.Info().MaxPayload); err != nil {
				return err
			}
		}
		next, err := newRepeater(m, f.template)
		if err != nil {
			return &usageError{err}
		}
		return a.publish(ctx, by, args[0], next, f.count)
	})
	return cmd
}

// pubBufferBytes bounds what was read and has no result: enough to keep a server busy, little that an interrupted run leaves.
const pubBufferBytes = 16 << 20

// publisher is what takes the records, and what is to be done with it in the end. PUB has no acks: where other than the
// default is asked for, records go by PRODUCE, and so do many to a topic that is there: batches are several times as fast. PUB
// makes a topic, or is a message to a live subject, where there is none.
func (f *pubFlags) publisher(ctx context.Context, c *trunkline.Client, to string) (by measure.Publisher, end func(), err error) {
	room := c.Info().MaxPayload
	if f.acks == string(trunkline.AcksAll) {
		if room = 0; f.lines || f.records {
			room = batchRoom(ctx, c, to)
		}
		if room == 0 {
			return measure.ByClient(c), func() {}, nil
		}
	}
	p, err := c.NewProducer(trunkline.WithAcks(trunkline.Acks(f.acks)), trunkline.RetryUnknown(false), trunkline.WithBufferBytes(pubBufferBytes))
	if err != nil {
		return by, nil, err
	}
	by = (&orderly{client: c, batches: measure.ByProducer(p), room: room}).publisher()
	return by, by.Close, nil
}

// batchRoom is the size up to which a record fits into a batch of a topic, whatever its batch has around it; 0 where the topic
// is not there, or only the server can say which partition a record belongs to.
func batchRoom(ctx context.Context, c *trunkline.Client, to string) int {
	const around = 128
	a, err := address.Parse([]byte(to))
	if err != nil {
		return 0
	}
	m, err := c.Metadata(ctx, string(a.Topic))
	if err != nil || len(m.Topics) != 1 || m.Topics[0].Error != "" || m.Topics[0].Plan.Kind == partition.KindCalled {
		return 0
	}
	n, _ := m.Topics[0].Settings["message.bytes"].(json.Number)
	most, _ := n.Int64()
	return max(0, min(int(most), c.Info().MaxPayload)-around)
}

// orderly publishes records in batches, and by themselves where they do not fit otherwise (PUB bounds a record, PRODUCE the
// batch that it is in), or have headers that only PUB looks at. None overtakes another: before the way changes, everything on
// the way before has its result.
type orderly struct {
	client  *trunkline.Client
	batches measure.Publisher
	room    int
	alone   bool // the record before went by itself
}

func (o *orderly) publisher() measure.Publisher {
	return measure.Publisher{Publish: o.publish, Flush: o.flush, Close: func() {
		o.batches.Close()
		_ = o.client.Close() // so that what went by itself has its result, too
	}}
}

func (o *orderly) publish(ctx context.Context, to string, m *trunkline.Message, done func(trunkline.Ack, error)) error {
	const aroundHeader = 16
	size := len(m.Key) + len(m.Value)
	for i := range m.Headers {
		size += len(m.Headers[i].Name) + len(m.Headers[i].Value) + aroundHeader
	}
	if alone := size > o.room || judged(m.Headers); alone != o.alone {
		if err := o.flush(ctx); err != nil {
			return err
		}
		o.alone = alone
	}
	if o.alone {
		return o.client.PublishFunc(ctx, to, m, done)
	}
	return o.batches.Publish(ctx, to, m, done)
}

// judged reports whether there are headers that PUB, and only PUB, may refuse: what would be read as a field of the record,
// what nobody could read back, and what asks JetStream for something.
func judged(headers []trunkline.Header) bool {
	for i := range headers {
		h := &headers[i]
		switch h.Name {
		case "Key", "Key-Base64", "Timestamp", "Null-Value":
			return true
		}
		if strings.HasPrefix(h.Name, "Nats-") || strings.ContainsFunc(h.Name, unusual) || h.Name == "" || bytes.ContainsAny(h.Value, "\r\n") {
			return true
		}
	}
	return false
}

// unusual reports whether r is none of the characters that a header's name has for sure.
func unusual(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
}

func (o *orderly) flush(ctx context.Context) error {
	if o.alone {
		return o.client.Flush(ctx)
	}
	return o.batches.Flush(ctx)
}

// checkAcks refuses what nobody can wait for.
func checkAcks(acks string) error {
	switch trunkline.Acks(acks) {
	case trunkline.AcksNone, trunkline.AcksLeader, trunkline.AcksAll:
		return nil
	}
	return fmt.Errorf("--acks %q is not 0, 1 or all", acks)
}

// check refuses flags that do not go together.
func (f *pubFlags) check(cmd *cobra.Command, args int) error {
	many, changed := f.lines || f.records, cmd.Flags().Changed
	switch {
	case f.lines && f.records:
		return errors.New("--lines and --records do not go together: a line is a value or a record in JSON")
	case many && args > 1:
		return errors.New("--lines and --records read standard input or a file; leave BODY out")
	case many && changed("count"):
		return errors.New("--lines and --records do not go together with --count")
	case many && f.template:
		return errors.New("--template is for one record that is published --count times, not for lines")
	case f.records && (changed("key") || changed("key-base64") || len(f.headers) > 0 || f.null):
		return errors.New("with --records, key, headers and null stand in the lines")
	case f.null && (f.lines || args > 1 || f.file != ""):
		return errors.New("--null is a record without a value; leave the value out")
	case f.file != "" && args > 1:
		return errors.New("--file and BODY are both the value; leave one of them out")
	case changed("key") && changed("key-base64"):
		return errors.New("--key and --key-base64 are both the key; leave one of them out")
	case changed("key-delimiter") && (!f.lines || f.delimiter == ""):
		return errors.New("--key-delimiter cuts the lines of --lines, and is not empty")
	case changed("key-delimiter") && (changed("key") || changed("key-base64")):
		return errors.New("--key-delimiter takes the key from the line; leave --key out")
	case f.keepGoing && !many:
		return errors.New("--keep-going is for --lines and --records")
	case f.count < 1:
		return fmt.Errorf("--count %d is less than 1", f.count)
	}
	return checkAcks(f.acks)
}

// message is what the flags say of every record.
func (f *pubFlags) message(cmd *cobra.Command) (m trunkline.Message, err error) {
	if cmd.Flags().Changed("key") {
		m.Key = []byte(f.key)
	}
	if cmd.Flags().Changed("key-base64") {
		if m.Key, err = base64.StdEncoding.DecodeString(f.keyBase64); err != nil {
			return m, fmt.Errorf("--key-base64 %q is no base64", f.keyBase64)
		}
	}
	m.Headers, err = readHeaders(f.headers)
	return m, err
}

func readHeaders(list []string) ([]trunkline.Header, error) {
	var headers []trunkline.Header
	for _, h := range list {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("-H %q is not name:value", h)
		}
		headers = append(headers, trunkline.Header{Name: name, Value: []byte(strings.Trim(value, " \t"))})
	}
	return headers, nil
}

// input is the file that was named, or standard input.
func (a *app) input(ctx context.Context, file string) (io.ReadCloser, error) {
	if file == "" {
		return io.NopCloser(waiting(ctx, a.in)), nil
	}
	return os.Open(file)
}

// readBody reads all there is, at most what the server takes.
func readBody(in io.Reader, limit int) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read the input: %w", err)
	}
	if len(body) > limit {
		return nil, fmt.Errorf("%w: the input is longer than the %d bytes the server takes; --lines makes records of its lines",
			trunkline.ErrTooLarge, limit)
	}
	return body, nil
}

// resultsMax is how many results of --count are waited for at a time.
const resultsMax = 1024

// result is a publish under way.
type result struct {
	known chan struct{}
	ack   trunkline.Ack // set before known is closed
	err   error         // set before known is closed
}

func (r *result) take(ack trunkline.Ack, err error) {
	r.ack, r.err = ack, err
	close(r.known)
}

// publish sends count records and prints each answer in order. It stops at the first failure or interruption; what was
// under way by then is waited for and printed too, and a summary says how far it came.
func (a *app) publish(ctx context.Context, by measure.Publisher, to string, next func() (*trunkline.Message, error), count int) error {
	var under []*result // way, from the oldest on
	var failed error
	acked := 0
	keep := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	tried := 0
	for ; tried < count && failed == nil; tried++ {
		if failed = context.Cause(ctx); failed != nil { // publishing itself ends only where it has to wait
			break
		}
		m, err := next()
		if err != nil {
			failed = err
			break
		}
		r := &result{known: make(chan struct{})}
		if failed = by.Publish(ctx, to, m, r.take); failed != nil {
			break
		}
		if under = append(under, r); len(under) < resultsMax {
			continue
		}
		n, err := a.printResults(ctx, by, under)
		under, acked = nil, acked+n
		keep(err)
	}
	n, err := a.printResults(ctx, by, under)
	acked += n
	keep(err)
	if failed != nil && tried > 0 && count > 1 {
		a.note("%d of %d records acknowledged", acked, count)
	}
	return failed
}

// printResults waits for results, an interrupted run only for a little, and prints them. It returns how many are
// acknowledged, and the first failure.
func (a *app) printResults(ctx context.Context, by measure.Publisher, results []*result) (acked int, failed error) {
	for _, r := range results {
		select {
		case <-r.known:
		case <-ctx.Done():
			_ = by.Drain(ctx) // each result says what became of it
			<-r.known
		}
		err := r.err
		if err == nil {
			acked++
			err = a.printAck(r.ack)
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	return acked, failed
}

func (a *app) printAck(ack trunkline.Ack) error {
	if a.json {
		return a.printJSON(ack)
	}
	if ack.Offset < 0 {
		_, err := fmt.Fprintln(a.out, ack.Durability)
		return err
	}
	_, err := fmt.Fprintf(a.out, "%s/%d@%d %s\n", ack.Topic, ack.Partition, ack.Offset, ack.Durability)
	return err
}
