import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;

/** Counts its visitors in a file. */
public class Counter {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext("/", exchange -> {
            Path file = Path.of("/data/count");
            int count = Files.exists(file) ? Integer.parseInt(Files.readString(file)) + 1 : 1;
            Files.writeString(file, Integer.toString(count));
            byte[] text = ("visitor " + count).getBytes();
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
    }
}
