package storagerpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func truncated() storage.Opened {
	return storage.Opened{
		Lease:    storage.Lease{Epoch: 9, Base: 3, Next: 5, Position: 77, MaxTimestamp: 4, Dev: 2, Ino: 3},
		LogStart: 1, Sealed: []storage.Segment{{Base: 0, Next: 3, Size: 8, MaxTimestamp: 2}},
	}
}

func TestKeeperTravels(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true}
	c, _ := connect(t, f)
	ctx := context.Background()
	f.kept.start = 17
	expire := storage.ExpireRequest{Partition: part(), Instance: "a", RetentionTime: 7 * 24 * time.Hour, RetentionBytes: -1, Limit: 40}
	if start, err := c.Expire(ctx, expire); err != nil || start != 17 || f.kept.expire != expire {
		t.Errorf("expire: %d, %v, asked %+v", start, err, f.kept.expire)
	}
	f.kept.trimmed = storage.Trimmed{LogStart: 18, First: 15}
	trim := storage.TrimRequest{Partition: part(), Instance: "a", LogStart: 18}
	if got, err := c.Trim(ctx, trim); err != nil || got != f.kept.trimmed || f.kept.trim != trim {
		t.Errorf("trim: %+v, %v, asked %+v", got, err, f.kept.trim)
	}
	f.kept.truncated = truncated()
	cut := storage.TruncateRequest{Partition: part(), Instance: "a", Lease: 8, Next: 5, Epoch: 6}
	o, err := c.Truncate(ctx, cut)
	if err != nil || f.kept.truncate != cut {
		t.Fatalf("truncate: %v, asked %+v", err, f.kept.truncate)
	}
	_ = o.Lease.File.Close()
	o.Lease.File = nil
	if fmt.Sprintf("%+v", o) != fmt.Sprintf("%+v", truncated()) {
		t.Errorf("truncate: %+v", o)
	}
	f.kept.adoption = storage.Adoption{TopicID: strings.Repeat("0f", 16), Partitions: 2, Epochs: []record.Epoch{4, -1}}
	a, err := c.Adoptable(ctx, "orders")
	if err != nil || fmt.Sprint(a) != fmt.Sprint(f.kept.adoption) || f.kept.topic != "orders" {
		t.Errorf("adoptable: %+v, %v, asked %q", a, err, f.kept.topic)
	}
	if err := c.Room(ctx); err != nil {
		t.Errorf("room: %v", err)
	}
	f.err = storage.ErrFull
	_, expireErr := c.Expire(ctx, expire)
	_, trimErr := c.Trim(ctx, trim)
	_, cutErr := c.Truncate(ctx, cut)
	_, adoptErr := c.Adoptable(ctx, "orders")
	for _, err := range []error{expireErr, trimErr, cutErr, adoptErr, c.Room(ctx)} {
		if !errors.Is(err, storage.ErrFull) {
			t.Errorf("a full disk came as %v", err)
		}
	}
}

func TestKeepersAnswersThatCannotBeRight(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true}
	c, _ := connect(t, f)
	ctx := context.Background()
	f.kept.start = -1
	if _, err := c.Expire(ctx, storage.ExpireRequest{Partition: part()}); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("log start -1: %v", err)
	}
	for _, a := range []storage.Trimmed{{LogStart: 17, First: 1}, {LogStart: 18, First: 19}, {LogStart: 18, First: -1}} {
		f.kept.trimmed = a
		if _, err := c.Trim(ctx, storage.TrimRequest{Partition: part(), LogStart: 18}); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%+v: %v", a, err)
		}
	}
	for name, spoil := range map[string]func(o *storage.Opened){
		"another end":    func(o *storage.Opened) { o.Lease.Next = 6 },
		"the same lease": func(o *storage.Opened) { o.Lease.Epoch = 8 },
		"a gap":          func(o *storage.Opened) { o.Sealed[0].Next = 2 },
		"a cut":          func(o *storage.Opened) { o.Cut = &storage.Cut{Offset: 5} },
		"no records":     func(o *storage.Opened) { o.Lease.Position = 0 },
	} {
		f.kept.truncated = truncated()
		spoil(&f.kept.truncated)
		if _, err := c.Truncate(ctx, storage.TruncateRequest{Partition: part(), Lease: 8, Next: 5}); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("truncated with %s: %v", name, err)
		}
	}
	f.lends, f.kept.truncated = false, truncated()
	if _, err := c.Truncate(ctx, storage.TruncateRequest{Partition: part(), Lease: 8, Next: 5}); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("truncated without a file: %v", err)
	}
	for _, a := range []storage.Adoption{
		{}, {TopicID: "xyz", Partitions: 1, Epochs: []record.Epoch{0}}, {Partitions: 2, Epochs: []record.Epoch{0}},
		{Partitions: 1, Epochs: []record.Epoch{-2}}, {TopicID: "0f", Partitions: 1, Epochs: []record.Epoch{0}},
	} {
		f.kept.adoption = a
		if _, err := c.Adoptable(ctx, "orders"); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// TestOpenLivesOnProgress: an open takes several times its patience and is waited for while its figures change; when
// they stay the same it is given up.
func TestOpenLivesOnProgress(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true, steps: make(chan storage.Progress)}
	f.opened = storage.Opened{Lease: storage.Lease{Epoch: 1, Base: 0, Next: 1, Position: 70}}
	c, _ := connect(t, f)
	c.deadlineOf = func(string) time.Duration { return 2*progressEvery + progressEvery/2 }
	var told []storage.Progress
	ctx := storage.WithProgress(context.Background(), func(p storage.Progress) { told = append(told, p) })
	ticker := time.NewTicker(progressEvery / 2)
	defer ticker.Stop()
	steps := f.steps
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		defer close(steps)
		for done := range int64(8) { // four seconds of work under a patience of two and a half
			<-ticker.C
			steps <- storage.Progress{Done: done, Total: 8}
		}
	}()
	o, err := c.Open(ctx, recoverRequest())
	<-feeding
	if err != nil {
		t.Fatalf("open that went on and on: %v", err)
	}
	_ = o.Lease.File.Close()
	if len(told) < 2 || told[len(told)-1].Total != 8 {
		t.Errorf("told %+v", told)
	}
	f.steps = make(chan storage.Progress)
	defer close(f.steps)
	if _, err := c.Open(context.Background(), recoverRequest()); !errors.Is(err, ErrDeadline) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open that stands still: %v", err)
	}
}

// mute answers an Open as it likes.
type mute struct {
	storagepb.StorageClient
	answers []*storagepb.OpenResponse
}

func (m *mute) Open(context.Context, *storagepb.OpenRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[storagepb.OpenResponse], error) {
	return &muteStream{left: m.answers}, nil
}

type muteStream struct {
	grpc.ServerStreamingClient[storagepb.OpenResponse]
	left []*storagepb.OpenResponse
}

func (m *muteStream) Recv() (*storagepb.OpenResponse, error) {
	if len(m.left) == 0 {
		return nil, io.EOF
	}
	next := m.left[0]
	m.left = m.left[1:]
	return next, nil
}

func TestOpensThatEndOddly(t *testing.T) {
	core, _ := pair(t)
	for name, answers := range map[string][]*storagepb.OpenResponse{
		"nothing":           nil,
		"an empty message":  {{}},
		"negative progress": {progressToWire(storage.Progress{Done: -1})},
		"no lease":          {{Step: &storagepb.OpenResponse_Opened{Opened: &storagepb.Opened{}}}},
		"only progress":     {progressToWire(storage.Progress{Done: 1, Total: 2})},
	} {
		c := &client{rpc: &mute{answers: answers}, sock: core, deadlineOf: deadlineOf}
		if _, err := c.Open(context.Background(), recoverRequest()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
