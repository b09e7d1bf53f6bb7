package partitionerrpc

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

// called is a partitioner whose Assign is a function.
type called struct {
	liar
	assign func(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error
}

func (c called) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	return c.assign(ctx, r, to)
}

// patient makes c wait longer than a busy machine takes, where a deadline is not what is tested.
func patient(c *Client) { c.assign.timeout = 20 * time.Second }

func keysOf(words ...string) *partition.Keys {
	var k partition.Keys
	for _, w := range words {
		k.Append([]byte(w))
	}
	return &k
}

// byLength sends a key to the partition of its length's number.
func byLength(_ context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	for i, key := range r.Keys.All() {
		to[i] = partition.ID(int32(len(key)) % r.Partitions)
	}
	return nil
}

func ask(ctx context.Context, c *Client, words ...string) ([]partition.ID, error) {
	to := make([]partition.ID, len(words))
	err := c.Assign(ctx, partitioner.AssignRequest{Topic: "orders", Partitions: 3, Keys: keysOf(words...)}, to)
	return to, err
}

func TestKeysTravelInOnePiece(t *testing.T) {
	c, _ := connect(t, called{assign: byLength})
	patient(c)
	to, err := ask(t.Context(), c, "", "a", "bb", "ccc", "dddd")
	if err != nil || len(to) != 5 || to[0] != 0 || to[1] != 1 || to[2] != 2 || to[3] != 0 || to[4] != 1 {
		t.Fatalf("%v, %v", to, err)
	}
	if to, err := ask(t.Context(), c); err != nil || len(to) != 0 {
		t.Errorf("no keys: %v, %v", to, err)
	}
}

func TestManyCallsShareAStream(t *testing.T) {
	c, _ := connect(t, called{assign: byLength})
	c.assign.timeout = 20 * time.Second // the machine's speed is not what is tested
	var wg sync.WaitGroup
	for i := range 2 * assignPending {
		wg.Go(func() {
			for n := range 20 {
				key := strings.Repeat("x", i+n)
				if to, err := ask(t.Context(), c, key, "a"); err != nil || int(to[0]) != len(key)%3 || to[1] != 1 {
					t.Errorf("%d: %v, %v", len(key), to, err)
					return
				}
			}
		})
	}
	wg.Wait()
	c.assign.mu.Lock()
	defer c.assign.mu.Unlock()
	if n := len(c.assign.waiting); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

func TestWrongAssignmentsAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		impl partitioner.Partitioner
		is   error
		says string
	}{
		"beyond the last partition": {called{assign: func(_ context.Context, _ partitioner.AssignRequest, to []partition.ID) error {
			to[0] = 3
			return nil
		}}, ErrBadAnswer, "partition 3 of 3"},
		"before the first": {called{assign: func(_ context.Context, _ partitioner.AssignRequest, to []partition.ID) error {
			to[0] = partition.None
			return nil
		}}, ErrBadAnswer, "of 3"},
		"an error": {called{assign: func(context.Context, partitioner.AssignRequest, []partition.ID) error {
			return errors.New("no\nluck")
		}}, ErrPlugin, "no?luck"},
		"not called at all": {liar{}, ErrPlugin, "Unimplemented"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := connect(t, tt.impl)
			patient(c)
			if _, err := ask(t.Context(), c, "a"); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// rawServer answers on the wire as no implementation behind Register can.
type rawServer struct {
	partitionerpb.UnimplementedPartitionerServer
	assign func(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error
}

func (r rawServer) Assign(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
	return r.assign(stream)
}

func TestAnswersOfAnotherLengthOrNumberAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(id uint64) *partitionerpb.AssignResponse
		is     error
	}{
		"too few": {func(id uint64) *partitionerpb.AssignResponse { return &partitionerpb.AssignResponse{Id: id} }, ErrBadAnswer},
		"too many": {func(id uint64) *partitionerpb.AssignResponse {
			return &partitionerpb.AssignResponse{Id: id, Partitions: []uint32{0, 0}}
		}, ErrBadAnswer},
		"of another": {func(id uint64) *partitionerpb.AssignResponse {
			return &partitionerpb.AssignResponse{Id: id + 1, Partitions: []uint32{0}}
		}, ErrDeadline},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := connectRaw(t, rawServer{assign: func(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
				for {
					req, err := stream.Recv()
					if err != nil {
						return err
					}
					if err := stream.Send(tt.answer(req.GetId())); err != nil {
						return err
					}
				}
			}})
			if tt.is != ErrDeadline {
				patient(c)
			}
			if _, err := ask(t.Context(), c, "a"); !errors.Is(err, tt.is) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestALateCallLeavesTheOthersAlone(t *testing.T) {
	c, _ := connectRaw(t, rawServer{assign: func(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
		late := uint64(0) // the first request is answered after the second
		for {
			req, err := stream.Recv()
			if err != nil {
				return err
			}
			if late == 0 {
				late = req.GetId()
				continue
			}
			for _, id := range []uint64{req.GetId(), late} {
				if err := stream.Send(&partitionerpb.AssignResponse{Id: id, Partitions: []uint32{2}}); err != nil {
					return err
				}
			}
		}
	}})
	if _, err := ask(t.Context(), c, "a"); !errors.Is(err, ErrDeadline) {
		t.Fatalf("first: %v", err)
	}
	c.assign.timeout = 20 * time.Second
	for range 3 {
		if to, err := ask(t.Context(), c, "a"); err != nil || to[0] != 2 {
			t.Fatalf("then: %v, %v", to, err)
		}
	}
}

func TestAHangingPluginIsAskedAgain(t *testing.T) {
	release := make(chan struct{})
	c, _ := connect(t, called{assign: func(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
		select {
		case <-release:
			return byLength(ctx, r, to)
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	start := time.Now()
	if _, err := ask(t.Context(), c, "a"); !errors.Is(err, ErrDeadline) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took < assignTimeout/2 {
		t.Errorf("took %s", took)
	}
	c.assign.timeout = 20 * time.Second // now the plugin's own clock ends it
	if _, err := ask(t.Context(), c, "a"); !errors.Is(err, ErrDeadline) {
		t.Errorf("got %v", err)
	}
	close(release)
	if to, err := ask(t.Context(), c, "a"); err != nil || to[0] != 1 {
		t.Errorf("then: %v, %v", to, err)
	}
}

func TestAPluginThatDoesNotReadEndsTheStream(t *testing.T) {
	c, _ := connectRaw(t, rawServer{assign: func(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
		<-stream.Context().Done()
		return stream.Context().Err()
	}})
	big := keysOf(strings.Repeat("x", assignBytesMax/8)) // more than the flow control's window
	for range 2 {
		to := make([]partition.ID, 1)
		err := c.Assign(t.Context(), partitioner.AssignRequest{Topic: "t", Partitions: 1, Keys: big}, to)
		if !errors.Is(err, ErrDeadline) {
			t.Errorf("got %v", err)
		}
	}
}

func TestAssignRefusesWhatIsTooMuch(t *testing.T) {
	c, _ := connect(t, called{assign: byLength})
	many := &partition.Keys{Lengths: make([]uint32, assignKeysMax+1)}
	err := c.Assign(t.Context(), partitioner.AssignRequest{Partitions: 1, Keys: many}, make([]partition.ID, many.Len()))
	if !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
	if err := c.Assign(t.Context(), partitioner.AssignRequest{Partitions: 1, Keys: keysOf("a")}, nil); err == nil {
		t.Error("no room for the answer is no error")
	}
}

func TestRequestsThatDoNotAddUpAreRefused(t *testing.T) {
	impl := called{assign: func(context.Context, partitioner.AssignRequest, []partition.ID) error {
		t.Error("the implementation was asked")
		return nil
	}}
	for name, r := range map[string]*partitionerpb.AssignRequest{
		"keys that are too short": {Partitions: 1, Keys: []byte("ab"), Lengths: []uint32{1, 2}},
		"keys that are too long":  {Partitions: 1, Keys: []byte("abcd"), Lengths: []uint32{1, 2}},
		"lengths that overflow":   {Partitions: 1, Keys: []byte("ab"), Lengths: []uint32{1 << 31, 1 << 31, 2}},
		"no partitions":           {Keys: []byte("a"), Lengths: []uint32{1}},
		"too many partitions":     {Partitions: partition.CountMax + 1, Keys: []byte("a"), Lengths: []uint32{1}},
	} {
		if _, err := assignTo(t.Context(), impl, r, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAServerThatIsGoneIsUnavailable(t *testing.T) {
	c, stop := connect(t, called{assign: byLength})
	patient(c)
	if _, err := ask(t.Context(), c, "a"); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := ask(t.Context(), c, "a"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	asked := make(chan struct{})
	c, _ := connect(t, called{assign: func(ctx context.Context, _ partitioner.AssignRequest, _ []partition.ID) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}})
	c.assign.timeout = 20 * time.Second
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := ask(t.Context(), c, "a"); err == nil {
			t.Error("an answer came")
		}
	})
	<-asked
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if _, err := ask(t.Context(), c, "a"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCallsThatFallWithAStuckOneAreLateAndNotUnavailable(t *testing.T) {
	asked := make(chan struct{}, 1)
	c, _ := connectRaw(t, rawServer{assign: func(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
		if _, err := stream.Recv(); err != nil { // the first one is read, and nothing after it
			return err
		}
		asked <- struct{}{}
		<-stream.Context().Done()
		return stream.Context().Err()
	}})
	patient := make(chan error, 1)
	c.assign.timeout = 20 * time.Second
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := ask(t.Context(), c, "a")
		patient <- err
	})
	<-asked
	big := keysOf(strings.Repeat("x", assignBytesMax/8))
	for range 2 { // gRPC takes one message beyond its window: the next one is stuck
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := c.Assign(ctx, partitioner.AssignRequest{Topic: "t", Partitions: 1, Keys: big}, make([]partition.ID, 1))
		cancel()
		if !errors.Is(err, ErrDeadline) {
			t.Errorf("the stuck one: %v", err)
		}
	}
	wg.Wait()
	if err := <-patient; !errors.Is(err, ErrDeadline) {
		t.Errorf("the one beside it: %v", err)
	}
}
