// Places the orders of standard input, one a line: <item> <quantity> [note]
package main

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"io"
	"log"
	"os"
	"strconv"
	"strings"

	_ "github.com/lib/pq"
)

func place(db *sql.DB, item string, quantity int, note string) error {
	transaction, err := db.Begin() // the order and its event, or neither
	if err != nil {
		return err
	}
	defer transaction.Rollback() // does nothing after the commit
	var orderID int64
	err = transaction.QueryRow("INSERT INTO orders (item, quantity, note) VALUES ($1, $2, $3) RETURNING id",
		item, quantity, note).Scan(&orderID)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(map[string]any{
		"order_id": orderID, "item": item, "quantity": quantity, "note": note,
	})
	if err != nil {
		return err
	}
	// The key is the item: orders for one item wait for one another anyway, in the order in which they were placed.
	_, err = transaction.Exec("INSERT INTO outbox (event_type, key, payload) VALUES ('order_placed', $1, $2)",
		item, payload)
	if err != nil {
		return err
	}
	return transaction.Commit()
}

func main() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewReader(os.Stdin) // a Scanner would stop at a long note
	for {
		line, end := lines.ReadString('\n')
		if end != nil && line == "" {
			if end != io.EOF {
				log.Fatal(end)
			}
			return
		}
		words := append(strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3), "")
		quantity, err := strconv.Atoi(words[1])
		if err != nil {
			log.Fatal(err)
		}
		if err := place(db, words[0], quantity, words[2]); err != nil {
			log.Fatal(err)
		}
	}
}
