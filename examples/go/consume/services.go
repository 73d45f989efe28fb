package main

import "database/sql"

type order struct {
	OrderID  int64  `json:"order_id"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

// What a service does with events of one type. An effect that others want to know of is a row of the outbox itself.
type service struct {
	eventType string
	effect    func(*sql.Tx, order) error
}

var services = map[string]service{
	"inventory": {"order_placed", reserve},
	"shipping":  {"order_reserved", ship},
	"orders":    {"order_refused", refuse},
}

func reserve(db *sql.Tx, o order) error {
	// Looked at and taken by one statement: two orders never take the same piece.
	result, err := db.Exec("UPDATE stock SET quantity = quantity - $2 WHERE item = $1 AND quantity >= $2",
		o.Item, o.Quantity)
	if err != nil {
		return err
	}
	taken, err := result.RowsAffected()
	if err != nil {
		return err
	}
	eventType := "order_refused"
	if taken > 0 {
		eventType = "order_reserved"
	}
	_, err = db.Exec(`INSERT INTO outbox (event_type, key, payload) VALUES ($1, $2::text,
		jsonb_build_object('order_id', $3::bigint, 'item', $2::text, 'quantity', $4::integer))`,
		eventType, o.Item, o.OrderID, o.Quantity)
	return err
}

func ship(db *sql.Tx, o order) error {
	_, err := db.Exec("INSERT INTO shipments (order_id, quantity) VALUES ($1, $2)", o.OrderID, o.Quantity)
	if err != nil {
		return err
	}
	_, err = db.Exec("UPDATE orders SET status = 'shipped' WHERE id = $1", o.OrderID)
	return err
}

func refuse(db *sql.Tx, o order) error {
	_, err := db.Exec("UPDATE orders SET status = 'refused' WHERE id = $1", o.OrderID)
	return err
}
