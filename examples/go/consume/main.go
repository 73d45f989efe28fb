// Reads events, and has the effect of each once: consume [inventory] [shipping] [orders]
//
// Start as many as you like. BUCKETS says which buckets this one reads.
package main

import (
	"context"
	"crypto/cipher"
	"database/sql"
	"encoding/json"
	"errors"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
)

const (
	stream       = "OUTBOX"
	fetchTimeout = 5 * time.Second // a request that a restart of NATS has lost is made again after it
	retryDelay   = 5 * time.Second
)

type shop struct {
	db   *sql.DB
	js   nats.JetStreamContext
	keys map[string]cipher.AEAD
}

func (s shop) handle(name, eventID string, o order) error {
	transaction, err := s.db.Begin() // the id and the effect, or neither
	if err != nil {
		return err
	}
	defer transaction.Rollback() // does nothing after the commit
	result, err := transaction.Exec(
		"INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, eventID)
	if err != nil {
		return err
	}
	isNew, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if isNew > 0 { // else it was done before, and only its acknowledgement got lost
		if err := services[name].effect(transaction, o); err != nil {
			return err
		}
	}
	return transaction.Commit()
}

func (s shop) consume(name string, message *nats.Msg) error {
	eventID := message.Header.Get("Postrider-Event-Id")
	if eventID == "" {
		return errors.New("no Postrider-Event-Id")
	}
	body, err := payload(s.js, s.keys, message)
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(body, &o); err != nil {
		return err
	}
	return s.handle(name, eventID, o)
}

func (s shop) work(stop context.Context, name, bucket string, ackWait time.Duration) error {
	durable := name + "-" + bucket
	subject := "outbox." + services[name].eventType + "." + bucket
	// Made here and only bound below: what a subscription makes it also deletes when it ends.
	_, err := s.js.ConsumerInfo(stream, durable)
	if errors.Is(err, nats.ErrConsumerNotFound) { // one that exists stays as it is
		_, err = s.js.AddConsumer(stream, &nats.ConsumerConfig{
			Durable:       durable,
			FilterSubject: subject,
			AckPolicy:     nats.AckExplicitPolicy,
			AckWait:       ackWait,
			// One at a time, whoever reads: a message that comes again comes before its successors.
			MaxAckPending: 1,
		})
	}
	if err != nil {
		return err
	}
	messages, err := s.js.PullSubscribe(subject, durable, nats.Bind(stream, durable))
	if err != nil {
		return err
	}
	for stop.Err() == nil {
		limit, cancel := context.WithTimeout(stop, fetchTimeout)
		batch, err := messages.Fetch(1, nats.Context(limit))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			log.Printf("%s: cannot fetch: %v", durable, err)
			time.Sleep(retryDelay)
		}
		for _, message := range batch {
			if err := s.consume(name, message); err != nil {
				// The bucket waits for it: to go on without it would break the order of its key.
				log.Printf("%s: event %s: %v", durable, message.Header.Get("Postrider-Event-Id"), err)
				message.NakWithDelay(retryDelay)
				continue
			}
			message.Ack() // after the commit, never before it
		}
	}
	return nil
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	buckets := strings.Split(setting("BUCKETS", "0,1,2,3"), ",") // of bucket(4) in postrider.toml
	ackWait, err := time.ParseDuration(setting("ACK_WAIT", "30") + "s")
	if err != nil {
		log.Fatal(err) // it must be longer than an effect takes
	}
	names := os.Args[1:]
	if len(names) == 0 {
		names = []string{"inventory", "shipping", "orders"}
	}
	keys, err := readKeys(os.Getenv("KEY_FILE"))
	if err != nil {
		log.Fatal(err)
	}
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxIdleConns(len(names) * len(buckets))
	connection, err := nats.Connect(os.Getenv("NATS_URL"), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	js, err := connection.JetStream()
	if err != nil {
		log.Fatal(err)
	}
	// What is under way is finished and acknowledged.
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	var workers sync.WaitGroup
	for _, name := range names {
		if _, known := services[name]; !known {
			log.Fatalf("no service is called %s", name)
		}
		for _, bucket := range buckets {
			workers.Add(1)
			go func(name, bucket string) {
				defer workers.Done()
				if err := (shop{db, js, keys}).work(stop, name, bucket, ackWait); err != nil {
					log.Fatal(err)
				}
			}(name, bucket)
		}
	}
	workers.Wait()
	connection.Flush() // the last acknowledgements
	connection.Close()
}
