package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/clients/cli/format"
	"github.com/trunkline-mq/trunkline/clients/cli/together"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// readFlags are the flags of sub and get.
type readFlags struct {
	count  int
	format string
	exit   bool
}

const formatHelp = "With --format records are printed by a pattern: %t topic, %p partition, %o offset, %v value, %k key,\n" +
	"%h headers, %d time, %T time in milliseconds, %S and %K the lengths of value and key (-1: null), %% for %;\n" +
	`and \n \t \0 \xNN. Nothing follows a record that the pattern does not say.`

func (f *readFlags) declare(cmd *cobra.Command, count int, what string) {
	cmd.Flags().IntVarP(&f.count, "count", "c", count, what)
	cmd.Flags().StringVarP(&f.format, "format", "f", "", `print records by a `+"`PATTERN`"+`, such as '%k %v\n'`)
	cmd.DisableFlagsInUseLine = true
}

// printer returns what prints records as the flags say.
func (f *readFlags) printer(a *app, cmd *cobra.Command) (*printer, error) {
	if cmd.Flags().Changed("count") && f.count < 1 {
		return nil, fmt.Errorf("-c %d is less than 1", f.count)
	}
	p := &printer{app: a, positions: newPositions()}
	if cmd.Flags().Changed("format") {
		if a.json {
			return nil, errors.New("--format and --json are two forms; leave one of them out")
		}
		var err error
		if p.format, err = format.Parse(f.format); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (a *app) subCommand() *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "sub ADDRESS… [-c N] [--exit] [--format PATTERN]",
		Short: "Follow topics, a partition or live subjects and print what comes, one record a line",
		Long: "Follow ADDRESS, topic[/partition][@position], from now on unless it has a position:\n" +
			"an offset, earliest, latest, -N for the last N, a time, or 1h for an hour ago. A topic's name may\n" +
			"have wildcards, * for one token and > for the rest. With --exit it stops at the end that the log\n" +
			"had when it began. Where it was ended, standard error says at which addresses to go on: all of them\n" +
			"can be given to the next sub.\n\n" + formatHelp,
		Example: "  trunkline sub orders@earliest\n" +
			"  trunkline sub 'orders.>@-10' --format '%t/%p@%o %k %v\\n'\n" +
			"  trunkline sub orders/0@1h --exit --json\n" +
			"  trunkline sub orders/0@17 orders/1@12",
		Args: argCount(1, addressesMax), ValidArgsFunction: a.completeAllTopics,
	}
	f.declare(cmd, 0, "stop after `N` records")
	cmd.Flags().BoolVar(&f.exit, "exit", false, "stop at the end of the log")
	var all []address.Address
	var p *printer
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if p, err = f.printer(a, cmd); err != nil {
			return err
		}
		p.left, p.bounded = f.count, f.count > 0
		all, err = checkAddresses(args)
		return err
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !f.exit { // for long: it outlives the server's restarts
			return a.dialled(func(ctx context.Context, c *trunkline.Client, _ []string) error {
				return p.finish(p.follow(ctx, c, all), true)
			}, trunkline.WithHooks(a.connectionHooks()))(cmd, args)
		}
		return a.connected(func(ctx context.Context, c *trunkline.Client, _ []string) error {
			return p.finish(p.allToTheEnd(ctx, c, all), false)
		})(cmd, args)
	}
	return cmd
}

// connectionHooks tell of a subscription's connection that ends, and of the next one. The client's own may come and go.
func (a *app) connectionHooks() trunkline.Hooks {
	var lost atomic.Bool
	ours := func(purpose string) bool { return strings.HasPrefix(purpose, "subscription") }
	return trunkline.Hooks{
		Disconnected: func(d trunkline.Disconnected) {
			if ours(d.Purpose) {
				lost.Store(true)
				a.complain(fmt.Errorf("connection to %s ended: %w; connecting again", d.Address, d.Err), 0)
			}
		},
		Connected: func(c trunkline.Connected) {
			if ours(c.Purpose) && lost.CompareAndSwap(true, false) {
				fmt.Fprintf(a.streams.err, "trunkline: connected to %s again, going on behind the last record\n", c.Address)
			}
		},
	}
}

func (a *app) getCommand() *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "get ADDRESS… [-c N] [--format PATTERN]",
		Short: "Print records from an address on, without waiting for more",
		Long: "Print up to N records, one a line, from ADDRESS, topic[/partition][@position], on: from the\n" +
			"earliest unless it has a position. Of several addresses one is read after the other. Standard error\n" +
			"says at which addresses the next get goes on.\n\n" + formatHelp,
		Args: argCount(1, addressesMax), ValidArgsFunction: a.completeAllTopics,
	}
	f.declare(cmd, 10, "print up to `N` records")
	var p *printer
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if p, err = f.printer(a, cmd); err != nil {
			return err
		}
		p.left = f.count
		_, err = checkAddresses(args)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		next, err := p.getAll(ctx, c, args)
		if err == nil {
			err = p.flush()
		}
		if err == nil {
			a.note("next %s", strings.Join(next, " "))
			return nil
		}
		return p.finish(err, false)
	})
	return cmd
}

// addressesMax is how many addresses are read at a time: a connection each where they are followed, and all the partitions
// that a topic can have.
const addressesMax = partition.CountMax

func checkAddresses(texts []string) ([]address.Address, error) {
	var all []address.Address
	for _, text := range texts {
		addr, err := checkAddress(text, (*address.Address).ForRead)
		if err != nil {
			return nil, err
		}
		all = append(all, addr)
	}
	return all, nil
}

// place is a partition of a topic.
type place struct {
	topic     string
	partition trunkline.PartitionID
}

// step is where to go on in a place.
type step struct {
	place
	next trunkline.Offset
}

// positions know where to go on: behind what standard output has certainly taken.
type positions struct {
	taken map[place]trunkline.Offset
	since []step // printed, and perhaps still in the buffer; one behind the other in a place are one
}

func newPositions() positions { return positions{taken: make(map[place]trunkline.Offset)} }

func (s *positions) printed(r *trunkline.Record) {
	if r.Offset < 0 { // a live subject's: there is nothing to go back to
		return
	}
	now := step{place{r.Topic, r.Partition}, r.Offset + 1}
	if n := len(s.since); n > 0 && s.since[n-1].place == now.place {
		s.since[n-1] = now
		return
	}
	s.since = append(s.since, now)
}

func (s *positions) flushed() {
	for _, step := range s.since {
		s.taken[step.place] = step.next
	}
	s.since = s.since[:0]
}

// addresses are where to go on, in order.
func (s *positions) addresses() []string {
	var steps []step
	for at, next := range s.taken {
		steps = append(steps, step{at, next})
	}
	slices.SortFunc(steps, func(a, b step) int {
		if n := strings.Compare(a.topic, b.topic); n != 0 {
			return n
		}
		return int(a.partition) - int(b.partition)
	})
	var all []string
	for _, s := range steps {
		all = append(all, fmt.Sprintf("%s/%d@%d", s.topic, s.partition, s.next))
	}
	return all
}

// printer prints records.
type printer struct {
	*app
	format    *format.Format // nil: the value and a line end
	left      int            // records still to print
	bounded   bool
	positions positions
	scratch   []byte
}

// print prints one record; false when it was the last one asked for.
func (p *printer) print(r *trunkline.Record) (bool, error) {
	var err error
	switch {
	case p.json:
		err = p.printJSON(r)
	case p.format != nil:
		p.scratch = p.format.Append(p.scratch[:0], r)
		_, err = p.out.Write(p.scratch)
	default:
		p.out.Write(r.Value) // a bufio.Writer keeps its first error
		err = p.out.WriteByte('\n')
	}
	if err != nil {
		return false, err
	}
	p.positions.printed(r)
	if p.out.Available() < outputBytes/2 { // before it writes by itself, and nobody knows what
		err = p.flush()
	}
	p.left--
	return !p.bounded || p.left > 0, err
}

func (p *printer) flush() error {
	if err := p.out.Flush(); err != nil {
		return err
	}
	p.positions.flushed()
	return nil
}

// finish says where to go on, when that is of use: at a good end only if always.
func (p *printer) finish(err error, always bool) error {
	if flushed := p.flush(); err == nil {
		err = flushed
	}
	if err == nil && !always || errors.Is(err, syscall.EPIPE) {
		return err
	}
	if next := p.positions.addresses(); len(next) > 0 {
		fmt.Fprintf(p.streams.err, "next %s\n", strings.Join(next, " "))
	}
	return err
}

// begin subscribes to an address, and keeps where to go on in its partitions as long as nothing has come. Where its name
// is no topic's, that is said: a misspelt name would be waited on in silence.
func (p *printer) begin(ctx context.Context, c *trunkline.Client, to address.Address) (*trunkline.Subscription, error) {
	name := string(to.Topic)
	var list []trunkline.PartitionOffset
	var err error
	if address.ValidTopic(name) == nil {
		list, err = c.Offsets(ctx, to.String())
	}
	missing := errors.Is(err, trunkline.ErrNotFound) // what else stands in the way stands in the subscription's way, too
	sub, err := c.Subscribe(ctx, to.String())
	if err != nil {
		return nil, err
	}
	for _, at := range list {
		if at.Error == "" {
			p.positions.taken[place{name, at.Partition}] = at.Offset
		}
	}
	switch {
	case !missing:
	case to.Partition == partition.None && to.Position.Kind == address.None:
		p.note("trunkline: no topic %s: listening to the live subject, and to the topic from its first record on when it is made", name)
	default: // what is live has neither
		p.note("trunkline: no topic %s: waiting until it is made", name)
	}
	return sub, nil
}

// follow prints what comes. Damage in the log is reported and passed over, and makes the command fail in the end.
func (p *printer) follow(ctx context.Context, c *trunkline.Client, all []address.Address) error {
	var subs together.Subscriptions
	defer subs.Stop()
	for _, to := range all {
		sub, err := p.begin(ctx, c, to)
		if err != nil {
			return err
		}
		subs.Add(sub)
	}
	var damage, last error
	for r, err := range subs.Messages(ctx) {
		if last = err; err != nil {
			switch notice := err.(type) { // bare: the subscription goes on
			case *trunkline.ServerError, *trunkline.GapError:
				p.warn(notice)
				last = nil
			}
			if errors.Is(err, trunkline.ErrCorrupt) {
				damage = err
			}
			continue
		}
		more, err := p.print(r)
		if err != nil {
			return err
		}
		if !more {
			return damage
		}
		if subs.Buffered() == 0 { // the next one may be long in coming
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return last
}

// allToTheEnd prints what lies at one address after the other.
func (p *printer) allToTheEnd(ctx context.Context, c *trunkline.Client, all []address.Address) error {
	for _, addr := range all {
		if err := p.toTheEnd(ctx, c, addr); err != nil || p.bounded && p.left <= 0 {
			return err
		}
	}
	return nil
}

// toTheEnd prints, topic after topic and partition after partition, what lies below the high watermarks of now.
func (p *printer) toTheEnd(ctx context.Context, c *trunkline.Client, addr address.Address) error {
	names := []string{string(addr.Topic)}
	if strings.ContainsAny(names[0], "*>") {
		all, err := c.Topics(ctx)
		if err != nil {
			return err
		}
		names = names[:0]
		for _, t := range all {
			if covers(string(addr.Topic), t.Name) {
				names = append(names, t.Name)
			}
		}
		slices.Sort(names)
		if len(names) == 0 {
			return &trunkline.ServerError{Code: errcode.UnknownTopic, Text: fmt.Sprintf("no topic matches %s; trunkline topic ls lists them", addr.Topic)}
		}
	}
	bare := addr.Position.Kind == address.None
	for _, name := range names {
		from := addr
		from.Topic = []byte(name)
		if bare {
			from.Position.Kind = address.Latest
		}
		if more, err := p.topicToTheEnd(ctx, c, from); err != nil || !more {
			return err
		}
	}
	if bare {
		p.note("trunkline: %s begins at its end unless it has a position; add @earliest to read what is there", addr)
	}
	return nil
}

// covers reports whether a pattern, * for one token and > for the rest, covers a name.
func covers(pattern, name string) bool {
	tokens, names := strings.Split(pattern, "."), strings.Split(name, ".")
	for i, t := range tokens {
		switch {
		case t == ">" && i == len(tokens)-1:
			return len(names) > i
		case i >= len(names), t != "*" && t != names[i]:
			return false
		}
	}
	return len(tokens) == len(names)
}

func (p *printer) topicToTheEnd(ctx context.Context, c *trunkline.Client, addr address.Address) (more bool, err error) {
	topic, err := c.TopicInfo(ctx, string(addr.Topic))
	if err != nil {
		return false, err
	}
	first, last := addr.Partition, addr.Partition
	if addr.Partition == partition.None {
		first, last = 0, partition.ID(len(topic.Partitions)-1)
	}
	for id := first; id <= last; id++ {
		part, err := partitionOf(topic, id)
		if err != nil {
			return false, err
		}
		from := addr
		from.Partition = id
		if more, err := p.until(ctx, c, from, part.Log); err != nil || !more {
			return more, err
		}
	}
	return true, nil
}

// until prints one partition's records below its high watermark. It reads with GET, which tells where it ended: a
// subscription would wait for a record that may never come where a position lies beyond the last one.
func (p *printer) until(ctx context.Context, c *trunkline.Client, from address.Address, log *trunkline.Log) (more bool, err error) {
	for next := log.Start; next < log.HighWatermark; {
		reading, err := c.Get(ctx, from.String(), int(log.HighWatermark-next))
		if err != nil {
			return false, err
		}
		more, err := p.readBelow(ctx, reading, log.HighWatermark)
		addresses := reading.Next()
		reading.Close()
		if err != nil || !more {
			return more, err
		}
		if addresses == nil { // it was left at the high watermark
			return true, nil
		}
		after, err := address.Parse([]byte(strings.Join(addresses, " ")))
		if err != nil || after.Position.Kind != address.Offset || after.Partition != from.Partition {
			return false, fmt.Errorf("%w: GET %s goes on at %q", trunkline.ErrProtocol, from, addresses)
		}
		reached := trunkline.Offset(after.Position.N)
		if from.Position.Kind == address.Offset && reached <= next && reached < log.HighWatermark {
			return false, fmt.Errorf("%s has no records before %d, though its high watermark is %d", from, reached, log.HighWatermark)
		}
		from, next = after, reached
	}
	return true, nil
}

// readBelow prints a reading's records with offsets below end.
func (p *printer) readBelow(ctx context.Context, reading *trunkline.Reading, end trunkline.Offset) (more bool, err error) {
	var last error
	for r, err := range reading.Messages(ctx) {
		if last = err; err != nil {
			continue
		}
		if r.Offset >= end {
			return true, nil
		}
		if more, err := p.print(r); err != nil || !more {
			return false, err
		}
	}
	return true, last
}

// getAll prints up to p.left records of addresses one after the other, and returns where to go on in each.
func (p *printer) getAll(ctx context.Context, c *trunkline.Client, from []string) (next []string, err error) {
	for _, addr := range from {
		if p.left <= 0 {
			next = append(next, addr)
			continue
		}
		after, err := p.get(ctx, c, addr, p.left)
		if err != nil {
			return nil, err
		}
		next = append(next, after...)
	}
	return next, nil
}

// get prints up to count records and returns where to go on.
func (p *printer) get(ctx context.Context, c *trunkline.Client, from string, count int) ([]string, error) {
	reading, err := c.Get(ctx, from, count)
	if err != nil {
		return nil, err
	}
	defer reading.Close()
	var last error
	for r, err := range reading.Messages(ctx) {
		if last = err; err != nil {
			continue
		}
		if _, err := p.print(r); err != nil {
			return nil, err
		}
	}
	return reading.Next(), last
}
